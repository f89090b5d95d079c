# NVIDIA's server with what our Python-backend model calls. Its Python's numpy must stay below 2.
# Before 26.03 strangers can get around the restriction below (CVE-2026-24207).
FROM nvcr.io/nvidia/tritonserver:26.08-py3
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN pip install --no-cache-dir "onnxruntime>=1.20,<1.24" "numpy>=1.26,<2"
# A volume that is first mounted here takes this owner over; the control plane writes it.
RUN install -d -o 10001 -g 10001 /data/repository
COPY start-triton.sh /usr/local/bin/
USER 10001
EXPOSE 8000 8001 8002
CMD ["start-triton.sh"]
