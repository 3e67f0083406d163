# The image of the stages: the program, ONNX Runtime, the embedding model, and the few libraries that these load.
#
#   docker build -t sweepstream .
#   docker run --rm --read-only -e SWEEPSTREAM_KAFKA__BOOTSTRAP_SERVERS=kafka.example.com:9092 sweepstream
#
# For x86-64 and aarch64. docs/container.md says how it is run; deploy/check-container builds and tries it.

FROM rust:1.95.0-bookworm AS build

# What parts/fetch needs.
RUN apt-get update \
 && apt-get install -y --no-install-recommends maven openjdk-17-jre-headless python3-pip \
 && rm -rf /var/lib/apt/lists/*

# /image becomes the root of the image. The parts come first: they change less often than the source.
WORKDIR /src
COPY parts parts
RUN SWEEPSTREAM_PARTS=/image/usr/local/share/sweepstream parts/fetch --stages \
 && find /image '(' -name .stamp -o -name .lock ')' -delete

# The caches outlive the layer, so that a changed source file does not build all dependencies again. One build at a time
# has them: those of two platforms would write to the same place.
COPY . .
RUN --mount=type=cache,sharing=locked,target=/usr/local/cargo/registry \
    --mount=type=cache,sharing=locked,target=/src/target \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked \
 && install -D target/release/sweepstream /image/usr/local/bin/sweepstream

# The shared libraries that the two load, each where the loader looks for it.
RUN ldd /image/usr/local/bin/sweepstream /image/usr/local/share/sweepstream/onnxruntime/libonnxruntime.so \
  | sed -n 's:^\t\(.* => \)\?\(/.*\) (0x.*:\2:p' | sort -u | xargs -I FILE cp -L --parents FILE /image

# Certificates for TLS to brokers, a name for the user, and how names of hosts are looked up. For scanners and lawyers:
# the release, and the records and licences of the Debian packages that the libraries and certificates are from.
RUN cd /image \
 && mkdir -p etc/ssl/certs var/lib/dpkg/status.d \
 && cp -L /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ \
 && cp -L /etc/os-release etc/ \
 && echo 'sweepstream:x:65532:65532:sweepstream:/:/sbin/nologin' >etc/passwd \
 && echo 'sweepstream:x:65532:' >etc/group \
 && echo 'hosts: files dns' >etc/nsswitch.conf \
 && for package in ca-certificates libc6 libgcc-s1 libstdc++6; do \
      dpkg-query --status "$package" >"var/lib/dpkg/status.d/$package" \
   && cp -rL --parents "/usr/share/doc/$package/copyright" .; \
    done \
 && install -D -m 644 /src/LICENSE usr/share/doc/sweepstream/LICENSE

# From nothing: no shell, no package manager, and what deploy/check-container runs is file for file what runs elsewhere,
# whichever base image somebody else would have pulled that day.
FROM scratch
COPY --from=build /image /
LABEL org.opencontainers.image.title="sweepstream" \
      org.opencontainers.image.description="Embeds a Kafka topic of text once, exactly once, and trains many trials" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/sweepstream/sweepstream"
# The OpenSSL inside looks for certificates where it was built, unless it is told. The endpoint's default is loopback,
# and that of a container nobody else reaches.
ENV PATH=/usr/local/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    SWEEPSTREAM_PARTS=/usr/local/share/sweepstream \
    SWEEPSTREAM_HTTP__ADDRESS=0.0.0.0:9464
USER 65532:65532
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["sweepstream", "health"]
ENTRYPOINT ["sweepstream"]
CMD ["run"]
