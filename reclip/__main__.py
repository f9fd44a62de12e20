"The command line: `python -m reclip` is `reclip`."

from reclip.cli import main

if __name__ == '__main__':
    main()
