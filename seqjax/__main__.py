"""Entry point of `python -m seqjax COMMAND`."""

from seqjax.cli import app

if __name__ == '__main__':
    app.execute()
