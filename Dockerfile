# The image of nodestead: one static binary, its licence, and nothing else. Why so: docs/decisions/0013-image.md.
# It needs BuildKit, which docker has used by itself since 23.0: DOCKER_BUILDKIT=1 docker build .

# Go runs on the machine that builds, and compiles for the one that is asked for (--platform): nothing is emulated.
FROM --platform=$BUILDPLATFORM golang:1.26.8-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
RUN --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT" -o /out/nodestead ./cmd/nodestead \
    && cp LICENSE /out/

FROM scratch
ARG VERSION=dev
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="nodestead" \
      org.opencontainers.image.description="Explains lost DNS lookups on a Kubernetes node, and makes the node trust a private CA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/nodestead/nodestead" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /out/ /
# By number, because there is no /etc/passwd. Root, because only root gets capabilities from a kubelet.
USER 0:0
ENTRYPOINT ["/nodestead"]
