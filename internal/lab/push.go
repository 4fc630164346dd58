package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
)

// The media types of an image in a registry.
const (
	manifestType = "application/vnd.docker.distribution.manifest.v2+json"
	configType   = "application/vnd.docker.container.image.v1+json"
	layerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Push puts a small image with this name ("team/app:1") into the registry, past
// its proxy, and returns what to pull it by.
func (r *Registry) Push(ctx context.Context, name string) (ref string, err error) {
	if err := r.push(ctx, name); err != nil {
		return "", fmt.Errorf("push %s: %w", name, err)
	}
	return r.Host + "/" + name, nil
}

func (r *Registry) push(ctx context.Context, name string) error {
	repository, tag, ok := strings.Cut(name, ":")
	if !ok {
		return fmt.Errorf("no tag")
	}
	pause, err := r.lab.buildPause(ctx)
	if err != nil {
		return err
	}
	layer, err := layerOf(Image{Files: map[string]string{"pause": pause}})
	if err != nil {
		return err
	}
	config, err := configOf([]string{"/pause"}, layer)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	out := gzip.NewWriter(&packed)
	if _, err := out.Write(layer); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	type blob struct {
		MediaType string `json:"mediaType"`
		Size      int    `json:"size"`
		Digest    string `json:"digest"`
	}
	put := func(mediaType string, content []byte) (blob, error) {
		b := blob{mediaType, len(content), digest(content)}
		return b, r.putBlob(ctx, repository, b.Digest, content)
	}
	configBlob, err := put(configType, config)
	if err != nil {
		return err
	}
	layerBlob, err := put(layerType, packed.Bytes())
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        configBlob,
		"layers":        []blob{layerBlob},
	})
	if err != nil {
		return err
	}
	return r.ask(ctx, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, manifest, manifestType, http.StatusCreated, nil)
}

// putBlob uploads one part of an image.
func (r *Registry) putBlob(ctx context.Context, repository, digest string, content []byte) error {
	var started http.Header
	if err := r.ask(ctx, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", nil, "", http.StatusAccepted, &started); err != nil {
		return err
	}
	to, err := url.Parse(started.Get("Location"))
	if err != nil {
		return fmt.Errorf("where to upload: %w", err)
	}
	query := to.Query()
	query.Set("digest", digest)
	to.RawQuery = query.Encode()
	return r.ask(ctx, http.MethodPut, to.RequestURI(), content, "application/octet-stream", http.StatusCreated, nil)
}

// ask sends a request to the registry itself, past the proxy, and wants this status.
func (r *Registry) ask(ctx context.Context, method, uri string, body []byte, mediaType string, want int, header *http.Header) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+registryBehind+uri, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	answer, err := r.HTTPClient().Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, uri, err)
	}
	if answer.StatusCode != want {
		return fmt.Errorf("%s %s: %s: %s", method, uri, answer.Status, tail(text))
	}
	if header != nil {
		*header = answer.Header
	}
	return nil
}

// configOf is the configuration of an image with one layer.
func configOf(entrypoint []string, layer []byte) ([]byte, error) {
	return json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": entrypoint},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
}

// digest is the name of content in a registry.
func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}
