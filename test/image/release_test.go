package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/internal/testing/testenv"
)

// smallRelease has the folder's every part, made of one small Go program and no Debian package.
func smallRelease(t *testing.T) release {
	t.Helper()
	const licence = "the licence of a package"
	dir := filepath.Join(t.TempDir(), "pkg")
	copyright := filepath.Join(dir, "usr/share/doc/tool/copyright")
	if err := errors.Join(os.MkdirAll(filepath.Dir(copyright), 0o755),
		os.WriteFile(copyright, []byte(licence), 0o644)); err != nil {
		t.Fatal(err)
	}
	return release{
		stamp: build.Stamp{Version: "v1.2.3", Commit: "feed"}, created: time.Unix(1700000000, 0).UTC(),
		repository: "r.example/net/weft", root: must(testenv.Repository()),
		contents: contents{modules: small.modules}, images: []platform{{"linux", "amd64"}, {"linux", "arm64"}},
		cli: goPackage{path: "github.com/weft-cni/weft"}, cliAlias: "kubectl-weft",
		clis: []platform{{"linux", "amd64"}, {"windows", "arm64"}},
		system: func(_ context.Context, arch string) ([]file, []debPackage, error) {
			return skeleton, []debPackage{{name: "tool", version: "1+2", arch: arch, source: "tools", dir: dir}}, nil
		},
	}
}

// TestRelease: the folder has every part; the manifest and the chart pin the image that the folder has; the sums are
// right; and a second build gives the same bytes.
func TestRelease(t *testing.T) {
	r := smallRelease(t)
	first, second := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	for _, out := range []string{first, second, first} { // over an older release, too
		if err := r.write(t.Context(), out); err != nil {
			t.Fatal(err)
		}
	}
	files := tree(t, first)
	if !maps.Equal(files, tree(t, second)) {
		t.Error("two builds of the same sources differ")
	}
	var names []string
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasPrefix(f, "monitoring/") {
			names = append(names, f)
		}
	}
	want := []string{"NOTES.md", "SHA256SUMS", "openvswitch.yaml", "weft-1.2.3.tgz", "weft-image-v1.2.3.tar", "weft-v1.2.3.spdx.json",
		"weft.yaml", "weft_v1.2.3_linux_amd64.tar.gz", "weft_v1.2.3_windows_arm64.zip"}
	if d := cmp.Diff(want, names); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "--quiet", sumsFile)
	cmd.Dir = first
	if msg, err := cmd.CombinedOutput(); err != nil || strings.Count(files[sumsFile], "\n") != len(files)-1 {
		t.Errorf("%v: %s\n%s", err, msg, files[sumsFile])
	}

	manifest := files["weft.yaml"]
	digest := regexp.MustCompile(`r\.example/net/weft:v1\.2\.3@(sha256:[0-9a-f]{64})\n`).FindStringSubmatch(manifest)
	if len(digest) == 0 || strings.Count(manifest, digest[0]) != 2 || strings.Contains(manifest, build.Repository) {
		t.Fatalf("weft.yaml does not pin the image:\n%s", manifest)
	}
	if text := files["openvswitch.yaml"]; strings.Count(text, digest[0]) != 1 || strings.Contains(text, build.Repository) {
		t.Errorf("openvswitch.yaml does not pin the image:\n%s", text)
	}
	chart := entries(t, must(gzip.NewReader(strings.NewReader(files["weft-1.2.3.tgz"]))))
	for name, want := range map[string]string{
		"weft/Chart.yaml":  "\nversion: 1.2.3\nappVersion: v1.2.3\n",
		"weft/values.yaml": "  repository: r.example/net/weft\n  tag: v1.2.3\n  digest: " + digest[1] + "\n",
	} {
		if !strings.Contains(string(chart[name]), want) {
			t.Errorf("%s of the chart lacks %q:\n%s", name, want, chart[name])
		}
	}
	if chart["weft/templates/daemonset.yaml"] == nil || chart["weft/values.schema.json"] == nil {
		t.Errorf("the chart has %v", slices.Sorted(maps.Keys(chart)))
	}
	if err := os.WriteFile(filepath.Join(first, "weft.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(first, sumsFile)); err != nil {
		t.Fatal(err)
	}
	if err := r.write(t.Context(), first); err == nil || !strings.Contains(err.Error(), "holds no release") {
		t.Errorf("another program's directory: %v", err)
	}
}

// TestReleasedCLI: each archive has the program under both names, stamped, and the licence.
func TestReleasedCLI(t *testing.T) {
	r := smallRelease(t)
	out := t.TempDir()
	if err := r.writeCLIs(t.Context(), out, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	data := must(os.ReadFile(filepath.Join(out, "weft_v1.2.3_windows_arm64.zip")))
	zr := must(zip.NewReader(bytes.NewReader(data), int64(len(data))))
	var names []string
	for _, f := range zr.File {
		names = append(names, f.Name)
	}
	if d := cmp.Diff([]string{"weft.exe", "LICENSE", "kubectl-weft.exe"}, names); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	tr := tar.NewReader(must(gzip.NewReader(must(os.Open(filepath.Join(out, "weft_v1.2.3_linux_amd64.tar.gz"))))))
	links := map[string]string{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		links[h.Name] = h.Linkname
		if !h.ModTime.Equal(r.created) {
			t.Errorf("%s is of %s", h.Name, h.ModTime)
		}
	}
	if d := cmp.Diff(map[string]string{"weft": "", "LICENSE": "", "kubectl-weft": "weft"}, links); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestPush: a registry gets the image for both architectures under the digest that the manifest pins, and a manifest
// for that registry.
func TestPush(t *testing.T) {
	r := smallRelease(t)
	r.clis = nil
	out := filepath.Join(t.TempDir(), "release")
	if err := r.write(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	args := []string{"-from", out, "-registry", host + "/net", "-plain-http", "-o", dir}
	if err := runPush(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	text := string(must(os.ReadFile(filepath.Join(dir, "weft-v1.2.3.yaml"))))
	pinned := regexp.MustCompile(`image: (\S+)`).FindStringSubmatch(text)[1]
	if !strings.HasPrefix(pinned, host+"/net/weft:v1.2.3@sha256:") || strings.Contains(text, "r.example") {
		t.Errorf("the manifest runs %s", pinned)
	}
	if text := string(must(os.ReadFile(filepath.Join(dir, "openvswitch-v1.2.3.yaml")))); !strings.Contains(text, pinned) {
		t.Errorf("openvswitch.yaml does not run %s", pinned)
	}
	_, digest, _ := strings.Cut(pinned, "@")
	index := must(remote.Index(must(name.NewDigest(host+"/net/weft@"+digest, name.Insecure))))
	var architectures []string
	for _, m := range must(index.IndexManifest()).Manifests {
		architectures = append(architectures, m.Platform.OS+"/"+m.Platform.Architecture)
		if config := must(must(index.Image(m.Digest)).ConfigFile()); config.Architecture != m.Platform.Architecture {
			t.Errorf("the image for %s says %s", m.Platform.Architecture, config.Architecture)
		}
	}
	if d := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, architectures); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if must(index.Digest()).String() != digest {
		t.Errorf("the registry has %s, pinned is %s", must(index.Digest()), digest)
	}
	if err := runPush(t.Context(), []string{"-from", t.TempDir(), "-registry", host}); err == nil ||
		!strings.Contains(err.Error(), "is not a release") {
		t.Errorf("a directory without a release: %v", err)
	}
}

// TestSBOM: every package and module is listed with its licence's text, once.
func TestSBOM(t *testing.T) {
	_, packages, err := smallRelease(t).system(t.Context(), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	text, err := newSBOM("v1", "sha256:ab", time.Unix(0, 0), packages,
		[]goModule{{"example.com/m", "v1.0.0", "MIT text"}, {"example.com/m", "v1.0.0", "MIT text"}})
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, l := range doc.Licences {
		texts[l.ID] = l.Text
	}
	found := map[string]string{}
	for _, p := range doc.Packages[1:] {
		found[p.Refs[0].Locator] = texts[p.Declared]
	}
	want := map[string]string{
		"pkg:deb/debian/tool@1%2B2?arch=arm64": "the licence of a package", "pkg:golang/example.com/m@v1.0.0": "MIT text",
	}
	if d := cmp.Diff(want, found); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		if ids[p.ID] || !regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`).MatchString(p.ID) {
			t.Errorf("the identifier %q is invalid or not the only one", p.ID)
		}
		ids[p.ID] = true
	}
}

// TestFromPackages: what ELF headers ask for is what ldd finds. The machine's own shell stands for a package.
func TestFromPackages(t *testing.T) {
	shell := must(lookup(program{"dash", "dash"}))
	wanted := append(must(libraries(t.Context(), shell)), shell)
	root := t.TempDir()
	var want []string
	for _, where := range wanted {
		f := must(systemFile(where))
		to := filepath.Join(root, f.path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755),
			os.WriteFile(to, must(os.ReadFile(f.from)), 0o755)); err != nil {
			t.Fatal(err)
		}
		want = append(want, f.path)
	}
	// The loader is asked for below lib64; Debian's package has a link there.
	loader := filepath.Join(root, "lib64")
	if err := os.MkdirAll(loader, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range want {
		if base := filepath.Base(path); strings.HasPrefix(base, "ld-linux") {
			if err := os.Symlink("/"+path, filepath.Join(loader, base)); err != nil {
				t.Fatal(err)
			}
		}
	}
	doc := filepath.Join(root, "usr/share/doc/dash/copyright")
	if err := errors.Join(os.MkdirAll(filepath.Dir(doc), 0o755), os.WriteFile(doc, []byte("BSD"), 0o644)); err != nil {
		t.Fatal(err)
	}
	p := must(parseControl("Package: dash\nVersion: 1\nArchitecture: amd64\n", root))
	unused := must(parseControl("Package: other\nVersion: 1\nArchitecture: amd64\n", t.TempDir()))
	files, used, err := fromPackages([]debPackage{unused, p}, []program{{"dash", "dash"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(used) != 1 || used[0].name != "dash" || used[0].source != "dash" {
		t.Errorf("used are %v", used)
	}
	got := map[string]file{}
	for _, f := range files {
		got[f.path] = f
	}
	for _, path := range want {
		if !strings.HasPrefix(filepath.Base(path), "ld-linux") && got[path].from == "" {
			t.Errorf("%s is missing", path)
		}
	}
	if got["var/lib/dpkg/status.d/dash"].content != p.control || got["usr/share/doc/dash/copyright"].content != "BSD" {
		t.Error("the package's control file or its licence is missing")
	}
	if err := os.Remove(filepath.Join(root, must(systemFile(wanted[0])).path)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fromPackages([]debPackage{p}, []program{{"dash", "dash"}}); err == nil ||
		!strings.Contains(err.Error(), "needs "+filepath.Base(wanted[0])) {
		t.Errorf("a library that no package has: %v", err)
	}
	if _, _, err := fromPackages([]debPackage{unused}, []program{{"dash", "dash"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program that no package has: %v", err)
	}
}

// TestNotes: the section of the version, or what is not released yet.
func TestNotes(t *testing.T) {
	const log = "# Changelog\n\n## [Unreleased]\n### Added\n- new\n\n## [0.1.0] - 2026-01-01\n- old\n"
	for version, want := range map[string]string{"0.1.0": "- old\n", "0.2.0": "### Added\n- new\n"} {
		if got, err := notesOf(log, version); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
	}
	if _, err := notesOf("# Changelog\n", "1.0.0"); err == nil {
		t.Error("missing notes were accepted")
	}
}

// TestReleaseArguments: a version that Helm would reject, and a repository with a tag, are named at once.
func TestReleaseArguments(t *testing.T) {
	for want, args := range map[string][]string{
		"write it as v0.2.0":  {"release", "-version", "0.2"},
		"write REGISTRY/NAME": {"release", "-version", "v0.2.0", "-repository", "a.example/b:c@d"},
		"are needed":          {"push", "-from", "x"},
	} {
		if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %s", args, err, want)
		}
	}
}

// tree reads the files below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(where string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(where)
		files[must(filepath.Rel(dir, where))] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
