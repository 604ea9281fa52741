"""`python -m hubdistill`: the command line, for launchers that start Python modules (`torchrun -m hubdistill run RECIPE`)."""

from hubdistill.launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    from hubdistill.cli import main

    main()
