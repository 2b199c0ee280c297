"""A study file (YAML or TOML) as a checked, resolved `StudyConfig`.

Only three things are required: a model, data and a target. Paths may hold ``${VARIABLE}`` and are relative to the study
file. Configs are inert: nothing is imported or run here.
"""
