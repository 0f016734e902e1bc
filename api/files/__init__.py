"""The Files API: uploads, downloads and how files are shown. The files themselves are `shared/files.py`."""
