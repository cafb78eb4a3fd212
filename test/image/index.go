package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// writeImages builds the image for each platform and writes their index as an OCI layout in a tar, and the SBOM. It
// returns the index's digest.
func (r release) writeImages(ctx context.Context, out, scratch string) (digest string, err error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var packages []debPackage
	var programs []string
	for _, p := range r.images {
		system, used, err := r.system(ctx, p.arch)
		if err != nil {
			return "", err
		}
		packages = append(packages, used...)
		c := collected{system: system}
		for i, m := range r.contents.modules {
			files, err := compile(ctx, filepath.Join(r.root, m.dir), m.packages,
				filepath.Join(scratch, p.arch, fmt.Sprint(i)),
				p.arch, r.stamp)
			if err != nil {
				return "", err
			}
			for _, f := range files {
				programs = append(programs, f.from)
			}
			c.own = append(c.own, files...)
		}
		img, err := newImage(r.stamp, p.arch, c)
		if err != nil {
			return "", err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.os, Architecture: p.arch}},
		})
	}
	hash, err := index.Digest()
	if err != nil {
		return "", err
	}
	if err := r.writeLayout(filepath.Join(out, r.layoutFile()), index, scratch); err != nil {
		return "", err
	}
	var dirs []string
	for _, m := range r.contents.modules {
		dirs = append(dirs, filepath.Join(r.root, m.dir))
	}
	modules, err := goModules(ctx, programs, dirs)
	if err != nil {
		return "", err
	}
	sbom, err := newSBOM(r.stamp.Version, hash.String(), r.created, packages, modules)
	if err != nil {
		return "", err
	}
	return hash.String(), os.WriteFile(filepath.Join(out, "weft-"+r.stamp.Version+".spdx.json"), sbom, 0o644)
}

func (r release) layoutFile() string { return "weft-image-" + r.stamp.Version + ".tar" }

// writeLayout writes an OCI layout whose one entry is the index, named as containerd and podman look for names.
func (r release) writeLayout(out string, index v1.ImageIndex, scratch string) error {
	dir, err := layout.Write(filepath.Join(scratch, "layout"), empty.Index)
	if err != nil {
		return err
	}
	if err := dir.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          r.repository + ":" + r.stamp.Version,
		"org.opencontainers.image.ref.name": r.stamp.Version,
	})); err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeTree(f, string(dir)); err != nil {
		return err
	}
	return f.Close()
}

// writeTree writes the files of a directory as a tar, in the order of their names.
func writeTree(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(where string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, where)
		if err != nil {
			return err
		}
		return writeEntry(tw, file{path: filepath.ToSlash(rel), mode: 0o644, from: where})
	})
	return errors.Join(err, tw.Close())
}

// readTree unpacks a tar of writeTree.
func readTree(from, dir string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%s holds the path %s", from, h.Name)
		}
		where := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(where), 0o755); err != nil {
			return err
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
		if err := os.WriteFile(where, data, 0o644); err != nil {
			return err
		}
	}
}

// runPush sends the image of a release to a registry and writes the manifests for it. The credentials are Docker's
// (~/.docker/config.json).
func runPush(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image push", flag.ContinueOnError)
	from := flags.String("from", "", "`directory` of the release")
	registry := flags.String("registry", "", "`registry`, with a path if any, that gets the image weft")
	out := flags.String("o", "", "write the manifests with the image of this registry to this `directory`, as weft-VERSION.yaml")
	plain := flags.Bool("plain-http", false, "speak HTTP to the registry, not HTTPS")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *from == "" || *registry == "" {
		return errors.New("-from and -registry are needed")
	}
	pinned, version, err := push(ctx, *from, *registry, *plain)
	if err != nil {
		return err
	}
	fmt.Println(pinned)
	if *out == "" {
		return nil
	}
	for _, manifest := range manifests {
		to := strings.TrimSuffix(manifest, ".yaml") + "-" + version + ".yaml"
		if err := repoint(filepath.Join(*from, manifest), filepath.Join(*out, to), pinned); err != nil {
			return err
		}
	}
	return nil
}

// push returns the image's name in the registry, with tag and digest, and the version.
func push(ctx context.Context, dir, registry string, plain bool) (pinned, version string, err error) {
	archives, err := filepath.Glob(filepath.Join(dir, "weft-image-*.tar"))
	if err != nil || len(archives) != 1 {
		return "", "", fmt.Errorf("%s is not a release: it holds %d files weft-image-*.tar", dir, len(archives))
	}
	version = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archives[0]), "weft-image-"), ".tar")
	options := []name.Option{name.StrictValidation}
	if plain {
		options = append(options, name.Insecure)
	}
	tag, err := name.NewTag(strings.TrimSuffix(registry, "/")+"/weft:"+version, options...)
	if err != nil {
		return "", "", fmt.Errorf("-registry: %w", err)
	}
	scratch, err := os.MkdirTemp("", "weft-push-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(scratch)
	if err := readTree(archives[0], scratch); err != nil {
		return "", "", err
	}
	all, err := layout.ImageIndexFromPath(scratch)
	if err != nil {
		return "", "", err
	}
	manifest, err := all.IndexManifest()
	if err != nil {
		return "", "", err
	}
	if len(manifest.Manifests) != 1 {
		return "", "", fmt.Errorf("%s holds %d images, want one", archives[0], len(manifest.Manifests))
	}
	index, err := all.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		return "", "", err
	}
	err = remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return "", "", fmt.Errorf("push %s: %w", tag, err)
	}
	return tag.Name() + "@" + manifest.Manifests[0].Digest.String(), version, nil
}

// repoint copies a manifest of a release, with another name of the same image.
func repoint(from, to, image string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	_, digest, _ := strings.Cut(image, "@")
	var text strings.Builder
	images := 0
	for line := range strings.Lines(string(data)) {
		if before, was, ok := strings.Cut(line, "image: "); ok && strings.HasSuffix(strings.TrimSpace(was), "@"+digest) {
			line = before + "image: " + image + "\n"
			images++
		}
		text.WriteString(line)
	}
	if images == 0 {
		return fmt.Errorf("%s names no image with the digest %s", from, digest)
	}
	return os.WriteFile(to, []byte(text.String()), 0o644)
}
