# NVIDIA's server with what our Python-backend model calls. Its Python's numpy must stay below 2.
FROM nvcr.io/nvidia/tritonserver:24.10-py3
RUN pip install --no-cache-dir "onnxruntime>=1.20,<1.24" "numpy>=1.26,<2"
# A volume that is first mounted here takes this owner over; the control plane writes it.
RUN install -d -o 10001 -g 10001 /data/repository
EXPOSE 8000 8001 8002
CMD ["tritonserver", "--model-repository=/data/repository", "--model-control-mode=explicit", \
     "--load-model=*", "--exit-on-error=false", "--strict-readiness=false", \
     "--disable-auto-complete-config", "--exit-timeout-secs=30"]
