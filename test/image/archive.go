package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
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
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weft-cni/weft/build"
)

// writeImage writes the archive beside its name and renames it, so that half an image is never loaded.
func writeImage(out string, ref name.Tag, stamp build.Stamp, c collected) error {
	img, err := newImage(stamp, runtime.GOARCH, c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := writeArchive(tmp, img, ref); err != nil {
		return fmt.Errorf("write the image to %s: %w", out, err)
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), out)
}

func newImage(stamp build.Stamp, arch string, c collected) (v1.Image, error) {
	// Bytes that a rebuild does not change come first.
	img, err := mutate.AppendLayers(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON))
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		files   []file
		comment string
	}{
		{c.system, "Open vSwitch's and nftables' programs, from Debian"},
		{c.own, "Weft " + stamp.Version},
	} {
		var layer bytes.Buffer
		if err := writeLayer(&layer, part.files); err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }
		l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
			tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:   l,
			History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "weft test/image", Comment: part.comment},
		})
		if err != nil {
			return nil, err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.Created = v1.Time{Time: epoch}
	cfg.OS, cfg.Architecture = "linux", arch
	cfg.Config = v1.Config{
		Entrypoint: []string{build.BinDir + "/weft-agent"},
		Env:        []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "Weft",
			"org.opencontainers.image.version":  stamp.Version,
			"org.opencontainers.image.revision": stamp.Commit,
			"org.opencontainers.image.source":   "https://github.com/weft-cni/weft",
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	return mutate.ConfigFile(img, cfg)
}

// writeArchive writes an OCI image layout as a tar, with Docker's manifest.json over the same blobs.
func writeArchive(w io.Writer, img v1.Image, ref name.Tag) error {
	a := archive{tw: tar.NewWriter(w)}
	a.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))

	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	desc := a.blob(manifest)
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	docker := []dockerManifest{{Config: blobPath(a.blob(config)), RepoTags: []string{ref.Name()}}}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		data, err := compressed(l)
		if err != nil {
			return err
		}
		docker[0].Layers = append(docker[0].Layers, blobPath(a.blob(data)))
	}

	a.addJSON("index.json", v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Digest:    desc,
			Size:      int64(len(manifest)),
			Platform:  &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Annotations: map[string]string{
				"io.containerd.image.name":          ref.Name(),
				"org.opencontainers.image.ref.name": ref.TagStr(),
			},
		}},
	})
	a.addJSON("manifest.json", docker)
	return a.close()
}

// dockerManifest is an entry of the manifest.json that docker save writes.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func compressed(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// archive adds files to a tar and keeps the first error.
type archive struct {
	tw  *tar.Writer
	err error
}

func (a *archive) add(name string, data []byte) {
	if a.err != nil {
		return
	}
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: epoch,
		Format: tar.FormatUSTAR}
	if a.err = a.tw.WriteHeader(h); a.err == nil {
		_, a.err = a.tw.Write(data)
	}
}

func (a *archive) addJSON(name string, v any) {
	data, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, data)
}

func (a *archive) blob(data []byte) v1.Hash {
	h, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(blobPath(h), data)
	return h
}

func (a *archive) close() error {
	if err := a.tw.Close(); a.err == nil {
		a.err = err
	}
	return a.err
}
