"""From Python: algorithms by name with the settings of `conf/algo`, and the task that runs one."""
