# For fingers that type make; everything is in ./run.
.PHONY: help up demo test check bench fuzz status
help up demo test check bench fuzz status:
	@./run $@
