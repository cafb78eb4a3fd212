// Package probeimage packs the probe into a container image: a tar that `ctr images import` reads.
//
// It keeps no state; each call works in the directory it is given.
package probeimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// Path is where the probe lies in its image.
const Path = "/probe"

// Image is a packed image.
type Image struct {
	// Reference is the name that pods use. It is tagged with the binary's hash, so that a stale image is never taken for
	// a new one.
	Reference string
	// File is the tar.
	File string
	// Binary is the probe itself, to be run outside pods.
	Binary string
}

// Build compiles the probe without cgo and packs it, into dir.
func Build(ctx context.Context, repo, dir string) (Image, error) {
	binary, err := testenv.Program(ctx, repo, "./test/e2e/probe", dir)
	if err != nil {
		return Image{}, err
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return Image{}, fmt.Errorf("build the probe: %w", err)
	}
	image := Image{Reference: reference(content), File: filepath.Join(dir, "probe.tar"), Binary: binary}
	file, err := os.Create(image.File)
	if err != nil {
		return Image{}, fmt.Errorf("pack the probe: %w", err)
	}
	defer file.Close()
	if err := pack(file, image.Reference, content); err != nil {
		return Image{}, fmt.Errorf("pack the probe: %w", err)
	}
	return image, file.Close()
}

func reference(binary []byte) string {
	hash := sha256.Sum256(binary)
	return "weft.test/probe:" + hex.EncodeToString(hash[:8])
}

// pack writes an image of one layer that holds one file and runs it.
func pack(w io.Writer, reference string, binary []byte) error {
	tag, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return err
	}
	var files bytes.Buffer
	tw := tar.NewWriter(&files)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: Path[1:], Mode: 0o755,
		Size: int64(len(binary))}); err != nil {
		return err
	}
	if _, err := tw.Write(binary); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	})
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = runtime.GOARCH, "linux"
	config.Config = v1.Config{Entrypoint: []string{Path}, Cmd: []string{"serve"}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	return tarball.Write(tag, image, w)
}
