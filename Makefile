# Each target is one plain command; README.md shows what to type where there is no make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

# glibc gives large memory back and asks for it again, over and over: a tenth of the time.
export MALLOC_MMAP_THRESHOLD_ = 4000000000
export MALLOC_TRIM_THRESHOLD_ = 4000000000
# Where this is set, each of dozens of processes compiles torch and all else anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test lint student strip clean
book: $(READY)  # run every notebook that is not fresh, then build _build/html
	$(BIN)/mindeye2-lite book
test: $(READY)  # unit tests, and every notebook from top to bottom
	OMP_NUM_THREADS=1 MINDEYE2_LITE_BATCH=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout 1800 tests notebooks
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/yamllint .
student: $(READY)  # copies without solutions, in _build/student
	$(BIN)/mindeye2-lite student
strip: $(READY)  # no outputs and no counts in git
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb
clean:
	rm -rf _build book/notebooks

# Without --no-compile pip compiles thousands of files that nothing imports, for a minute.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[book,dev]'
	touch $@
