package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/internal/testing/testenv"
)

// platform is an operating system and an architecture, in Go's words.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "_" + p.arch }

// release is what a folder is made of. The same sources, packages and commit give the same bytes.
type release struct {
	stamp      build.Stamp
	created    time.Time // of everything in the folder; the commit's
	repository string    // where the image is pulled from
	root       string    // of the Git repository
	contents   contents  // of the image
	images     []platform
	cli        goPackage // the program for operators' machines, and its other name there
	cliAlias   string
	clis       []platform
	// system collects the system layer for an architecture.
	system func(ctx context.Context, arch string) ([]file, []debPackage, error)
}

var versionFormat = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

func runRelease(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image release", flag.ContinueOnError)
	out := flags.String("o", "dist/release", "write the release into this `directory`: a new one, or a release")
	version := flags.String("version", "", "`version` of the release, as v0.2.0")
	commit := flags.String("commit", "", "`commit` that the release is built from")
	created := flags.Int64("created", 0, "`seconds` since 1970 that all files carry; the commit's time")
	repository := flags.String("repository", build.Repository, "`name` of the image, without a tag")
	only := flags.String("only", "", "a release for testing, of this `platform` alone, as linux/amd64")
	cache := flags.String("cache", "", "`directory` for downloads (default ~/.cache/weft/release)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !versionFormat.MatchString(*version) {
		return fmt.Errorf("-version %q: write it as v0.2.0", *version)
	}
	if _, err := name.NewRepository(*repository, name.StrictValidation); err != nil {
		return fmt.Errorf("-repository: %w; write REGISTRY/NAME", err)
	}
	root, err := testenv.Repository()
	if err != nil {
		return err
	}
	if *cache == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		*cache = filepath.Join(home, "weft", "release")
	}
	r := release{
		stamp: build.Stamp{Version: *version, Commit: *commit}, created: time.Unix(*created, 0).UTC(),
		repository: *repository, root: root, contents: weft,
		images: []platform{{"linux", "amd64"}, {"linux", "arm64"}},
		cli:    goPackage{path: "./cmd/weftctl"}, cliAlias: "kubectl-weft",
		system: func(ctx context.Context, arch string) ([]file, []debPackage, error) {
			return debianSystem(ctx, *cache, arch, weft.programs)
		},
	}
	for _, system := range []string{"linux", "darwin", "windows"} {
		r.clis = append(r.clis, platform{system, "amd64"}, platform{system, "arm64"})
	}
	if *only != "" {
		system, arch, _ := strings.Cut(*only, "/")
		r.clis = []platform{{system, arch}}
		r.images = r.clis
	}
	return r.write(ctx, *out)
}

// write makes the folder beside its name and renames it, so that half a release is never taken for one.
func (r release) write(ctx context.Context, out string) error {
	if _, err := os.Stat(filepath.Join(out, sumsFile)); err == nil {
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	} else if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty, and holds no release", out)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	scratch, err := os.MkdirTemp("", "weft-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	digest, err := r.writeImages(ctx, tmp, scratch)
	if err != nil {
		return err
	}
	if err := errors.Join(r.writeManifests(tmp, digest), r.writeChart(tmp, digest), r.writeNotes(tmp)); err != nil {
		return err
	}
	if err := r.writeCLIs(ctx, tmp, scratch); err != nil {
		return err
	}
	if err := writeSums(tmp); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	_ = os.Remove(out) // an empty directory
	return os.Rename(tmp, out)
}

// pinned names the image by tag, for people, and by digest, which counts.
func (r release) pinned(digest string) string {
	return r.repository + ":" + r.stamp.Version + "@" + digest
}

// manifests are deploy's, which run the image.
var manifests = []string{"weft.yaml", "openvswitch.yaml"}

// writeManifests writes deploy's manifests with the image of the release.
func (r release) writeManifests(out, digest string) error {
	for _, manifest := range manifests {
		data, err := os.ReadFile(filepath.Join(r.root, "deploy", manifest))
		if err != nil {
			return err
		}
		if !bytes.Contains(data, []byte("image: "+build.Image+"\n")) {
			return fmt.Errorf("deploy/%s does not run %s", manifest, build.Image)
		}
		data = bytes.ReplaceAll(data, []byte("image: "+build.Image+"\n"), []byte("image: "+r.pinned(digest)+"\n"))
		if err := os.WriteFile(filepath.Join(out, manifest), data, 0o644); err != nil {
			return err
		}
	}
	return r.copyAll(out, "monitoring", "deploy/monitoring")
}

// copyAll copies the files of a directory.
func (r release) copyAll(out, to, from string) error {
	entries, err := os.ReadDir(filepath.Join(r.root, from))
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(out, to), 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(r.root, from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, to, e.Name()), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	chartVersion = regexp.MustCompile(`(?m)^version: .*$`)
	appVersion   = regexp.MustCompile(`(?m)^appVersion: .*$`)
	valuesImage  = regexp.MustCompile(`(?m)^ {2}repository: .*\n {2}tag: .*\n {2}digest: .*$`)
)

// writeChart packs the chart as helm package does, with the versions and the image of the release.
func (r release) writeChart(out, digest string) error {
	version := strings.TrimPrefix(r.stamp.Version, "v")
	dir := filepath.Join(r.root, "deploy/helm/weft")
	var files []file
	err := filepath.WalkDir(dir, func(where string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(where) // the content behind links
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, where)
		if err != nil {
			return err
		}
		text := string(data)
		switch rel {
		case "Chart.yaml":
			text = appVersion.ReplaceAllString(chartVersion.ReplaceAllString(text, "version: "+version),
				"appVersion: "+r.stamp.Version)
		case "values.yaml":
			if !valuesImage.MatchString(text) {
				return errors.New("values.yaml lacks the image's repository, tag and digest")
			}
			text = valuesImage.ReplaceAllString(text,
				fmt.Sprintf("  repository: %s\n  tag: %s\n  digest: %s", r.repository, r.stamp.Version, digest))
		}
		files = append(files, file{path: path.Join("weft", filepath.ToSlash(rel)), mode: 0o644, content: text})
		return nil
	})
	if err != nil {
		return err
	}
	// Chart.yaml is the first: Helm reads archives once.
	first := slices.IndexFunc(files, func(f file) bool { return f.path == "weft/Chart.yaml" })
	files = slices.Concat(files[first:first+1], files[:first], files[first+1:])
	return r.writeTarGz(filepath.Join(out, "weft-"+version+".tgz"), files)
}

// writeTarGz writes files in their order, at the time of the release.
func (r release) writeTarGz(out string, files []file) error {
	var b bytes.Buffer
	zipped, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(zipped)
	for _, f := range files {
		if err := writeEntryAt(tw, f, r.created); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	if err := errors.Join(tw.Close(), zipped.Close()); err != nil {
		return err
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}

// writeCLIs compiles the program for operators' machines, and packs it under both of its names with the licence.
func (r release) writeCLIs(ctx context.Context, out, scratch string) error {
	program := path.Base(r.cli.path)
	for _, p := range r.clis {
		suffix := ""
		if p.os == "windows" {
			suffix = ".exe"
		}
		binary := filepath.Join(scratch, "cli-"+p.String(), program+suffix)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-s -w -buildid= "+r.stamp.LinkerFlags(), "-o", binary, r.cli.path)
		cmd.Dir = filepath.Join(r.root, r.contents.modules[0].dir)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off", "GOOS="+p.os,
			"GOARCH="+p.arch)
		if msg, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s for %s: %w: %s", program, p, err, strings.TrimSpace(string(msg)))
		}
		files := []file{
			{path: program + suffix, mode: 0o755, from: binary},
			{path: "LICENSE", mode: 0o644, from: filepath.Join(r.root, "LICENSE")},
		}
		archive := filepath.Join(out, fmt.Sprintf("%s_%s_%s", program, r.stamp.Version, p))
		var err error
		if p.os == "windows" {
			files = append(files, file{path: r.cliAlias + suffix, mode: 0o755, from: binary})
			err = r.writeZip(archive+".zip", files)
		} else {
			files = append(files, file{path: r.cliAlias, mode: fs.ModeSymlink | 0o777, link: program})
			err = r.writeTarGz(archive+".tar.gz", files)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r release) writeZip(out string, files []file) error {
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.path, Method: zip.Deflate, Modified: r.created}
		header.SetMode(f.mode)
		w, err := zw.CreateHeader(header)
		if err != nil {
			return err
		}
		data, err := f.read()
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := zw.Close(); err != nil {
		return err
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}

// writeNotes takes the notes from the changelog: the section of the version, or what is not released yet.
func (r release) writeNotes(out string) error {
	changelog, err := os.ReadFile(filepath.Join(r.root, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	notes, err := notesOf(string(changelog), strings.TrimPrefix(r.stamp.Version, "v"))
	if err != nil {
		return err
	}
	notes = fmt.Sprintf("# Weft %s\n\nCommit %s. `sha256sum -c SHA256SUMS` verifies the files.\n\n%s", r.stamp.Version,
		r.stamp.Commit, notes)
	return os.WriteFile(filepath.Join(out, "NOTES.md"), []byte(notes), 0o644)
}

func notesOf(changelog, version string) (string, error) {
	for _, heading := range []string{"\n## [" + version + "]", "\n## [Unreleased]"} {
		if _, rest, ok := strings.Cut(changelog, heading); ok {
			_, section, _ := strings.Cut(rest, "\n")
			section, _, _ = strings.Cut(section, "\n## ")
			if section = strings.TrimSpace(section); section != "" {
				return section + "\n", nil
			}
		}
	}
	return "", fmt.Errorf("CHANGELOG.md has no notes for %s", version)
}

// sumsFile has the SHA-256 of every other file of a release.
const sumsFile = "SHA256SUMS"

func writeSums(dir string) error {
	var sums bytes.Buffer
	err := filepath.WalkDir(dir, func(where string, d fs.DirEntry, err error) error { // in the order of names
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(where)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, where)
		fmt.Fprintf(&sums, "%x  %s\n", sum.Sum(nil), filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), sums.Bytes(), 0o644)
}
