"""The examples are no tests of this checkout: ``make test-adding`` puts them where CONTRIBUTING.md says."""

collect_ignore = ["examples"]
