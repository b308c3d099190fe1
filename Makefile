# Six words; each is one line of dev.py, which needs nothing but Python.
.PHONY: dev test lint types full golden
dev: ; python3 dev.py --version
test: ; python3 dev.py test
full: ; python3 dev.py test -m full
lint: ; python3 dev.py lint
types: ; python3 dev.py types
golden: ; python3 dev.py test --update-golden tests/golden
