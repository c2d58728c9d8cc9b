# What every container of docs/deploy.md runs, made by README.md's own command from the versions of requirements.lock:
#     docker build -t restorl:0.1.0 .
# The first part installs, the second is what is left to run: no make, no compiler, a user without rights.
FROM python:3.11-slim AS installed
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/restorl
# Who runs it may not write here: modules are compiled once and for all.
ENV UV_COMPILE_BYTECODE=1
COPY . .
RUN make setup

FROM python:3.11-slim
# wget: some versions of KubeRay ask by it whether Ray is well.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home restorl && mkdir /mnt/restorl /data && chown restorl:restorl /mnt/restorl /data
COPY --from=installed /opt/restorl /opt/restorl
# Beside PATH, which a login shell sets anew: KubeRay waits for the head in one.
RUN ln -s /opt/restorl/.venv/bin/ray /opt/restorl/.venv/bin/restorl /usr/local/bin/
ENV PATH=/opt/restorl/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /mnt/restorl
CMD ["restorl", "--help"]
