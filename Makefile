# For fingers that type make; everything is in ./run.
.PHONY: help up demo setup test check bench fuzz soak status
help up demo setup test check bench fuzz soak status:
	@./run $@
