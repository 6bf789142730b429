# The three steps in a container; docs/deploy.md says which options docker run wants and why.
#
#     docker build -t dlrm .
#     docker run --rm --cap-add SYS_NICE dlrm
#
# The library is compiled when the container runs, not when the image is built: it is made for the CPU that it finds.
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /dlrm
COPY requirements.txt requirements-loadgen.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-loadgen.txt
COPY . .
CMD ["sh", "-c", "python compile.py && python accuracy.py && exec python multi_instance.py --duration 10"]
