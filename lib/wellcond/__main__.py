"""python -m wellcond: says where the command line of the study is."""

import sys

if __name__ == "__main__":
    print("wellcond is the library; experiments are run by: python -m study " + " ".join(sys.argv[1:]), file=sys.stderr)
    sys.exit(2)
