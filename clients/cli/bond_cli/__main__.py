"""`python -m bond_cli`: how the supervisor starts its children."""

from bond_cli.main import main

if __name__ == "__main__":
    main()
