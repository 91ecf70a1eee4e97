# The image: the static binaries on nothing. No shell, no libraries, no other user.
#
# With the binaries that `make build` put into dist/ (no registry and no network needed):
#     docker build --target runtime --tag regatta-hello .
# With Docker alone, from the sources (pulls the Rust image and the crates; needs BuildKit, the default since Docker 23):
#     docker build --target from-source --tag regatta-hello .
# Another image with Rust and a C compiler, such as one in a registry of your own: --build-arg RUST_IMAGE=NAME
#
# The stage that needs no registry stands first: Docker's classic builder builds every stage that stands before the
# one asked for, whether it is used or not.

ARG RUST_IMAGE=rust:1.90-slim-bookworm

FROM scratch AS runtime
COPY dist/hello dist/regatta /
USER 65534:65534
ENTRYPOINT ["/hello"]

FROM ${RUST_IMAGE} AS source
WORKDIR /build
COPY . .
# With an explicit target, the flag is for the binaries alone and not for the compiler's own plug-ins.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --release --locked --target "$target" -p hello -p regatta-cli \
    && install -D -m 0755 -t /out "target/$target/release/hello" "target/$target/release/regatta"

FROM scratch AS from-source
COPY --from=source /out/ /
USER 65534:65534
ENTRYPOINT ["/hello"]
