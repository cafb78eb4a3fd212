// Package image makes small container images on the spot, as tars that `ctr images import` reads: no registry, no
// Docker. It holds no state; the tar that a call writes is the only result.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one file of an image: a copy of Source, or a symbolic link to Link, or Content.
type File struct {
	Path    string // absolute
	Source  string
	Link    string
	Content string
	Mode    int64 // 0755 when 0
}

// Image is what goes into a tar.
type Image struct {
	Tag        string
	Aliases    []string // more names
	Entrypoint []string
	Cmd        []string
	Env        []string
	Files      []File
}

// Write writes the image as a tar to a file.
func (i Image) Write(to string) error {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.Tag, err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer, types.DockerUncompressedLayer))
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.Tag, err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.Tag, err)
	}
	config := file.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: i.Entrypoint, Cmd: i.Cmd, Env: i.Env}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return fmt.Errorf("make image %s: %w", i.Tag, err)
	}
	named := map[name.Tag]v1.Image{}
	for _, text := range append([]string{i.Tag}, i.Aliases...) {
		tag, err := name.NewTag(text)
		if err != nil {
			return fmt.Errorf("make image %s: %w", i.Tag, err)
		}
		named[tag] = img
	}
	if err := tarball.MultiWriteToFile(to, named); err != nil {
		return fmt.Errorf("make image %s: write %s: %w", i.Tag, to, err)
	}
	return nil
}

// layer is the image's file system as a tar, with every parent directory before its files.
func (i Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	made := map[string]bool{"/": true, ".": true}
	for _, f := range i.Files {
		if err := writeParents(out, made, path.Dir(f.Path)); err != nil {
			return nil, err
		}
		if err := f.write(out); err != nil {
			return nil, fmt.Errorf("add %s: %w", f.Path, err)
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func writeParents(out *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := writeParents(out, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	mode := int64(0o755)
	if dir == "/tmp" {
		mode = 0o1777
	}
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: mode})
}

func (f File) write(out *tar.Writer) error {
	header := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Typeflag: tar.TypeReg}
	if header.Mode == 0 {
		header.Mode = 0o755
	}
	if f.Link != "" {
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.Link
		return out.WriteHeader(header)
	}
	content := []byte(f.Content)
	if f.Source != "" {
		var err error
		if content, err = os.ReadFile(f.Source); err != nil {
			return err
		}
	}
	header.Size = int64(len(content))
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err := out.Write(content)
	return err
}

// merge appends files whose paths are not there yet: the first one wins.
func merge(files []File, more ...File) []File {
	for _, f := range more {
		if !slices.ContainsFunc(files, func(have File) bool { return have.Path == f.Path }) {
			files = append(files, f)
		}
	}
	return files
}
