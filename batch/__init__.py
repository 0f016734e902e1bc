"""The batch processes: they turn files of rows into requests in the batch lane, and answers into files."""
