package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/weft-cni/weft/build"
)

// small is an image that every Linux machine can build: a shell with its libraries, and one Go program.
var small = contents{
	programs: []program{{"sh", "dash"}},
	modules: []module{{dir: "test/image/testdata/hello", packages: []goPackage{{"github.com/weft-cni/weft",
		build.BinDir}}}},
}

var testTag = must(name.NewTag("weft.io/weft:test", name.StrictValidation))

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// buildImage builds into a directory of its own and returns the archive.
func buildImage(t *testing.T, want contents, version string) string {
	t.Helper()
	c, err := collect(t.Context(), want, t.TempDir(), build.Stamp{Version: version})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "dist", "image.tar")
	if err := writeImage(out, testTag, build.Stamp{Version: version}, c); err != nil {
		t.Fatal(err)
	}
	if entries := must(os.ReadDir(filepath.Dir(out))); len(entries) != 1 {
		t.Errorf("left beside the image: %v", entries)
	}
	return out
}

func TestSameSourcesGiveTheSameBytes(t *testing.T) {
	first, second := buildImage(t, small, "v1"), buildImage(t, small, "v1")
	if !bytes.Equal(must(os.ReadFile(first)), must(os.ReadFile(second))) {
		t.Error("two builds of the same sources differ")
	}
}

func TestARebuildChangesOnlyOurLayer(t *testing.T) {
	before := must(must(tarball.ImageFromPath(buildImage(t, small, "v1"), &testTag)).Layers())
	after := must(must(tarball.ImageFromPath(buildImage(t, small, "v2"), &testTag)).Layers())
	if len(before) != 2 || len(after) != 2 {
		t.Fatalf("%d and %d layers, want 2 and 2", len(before), len(after))
	}
	if must(before[0].Digest()) != must(after[0].Digest()) {
		t.Error("the system layer changed with the version of our programs")
	}
	if must(before[1].Digest()) == must(after[1].Digest()) {
		t.Error("our layer did not change with the version of our programs")
	}
}

func TestProgramsKnowTheirVersion(t *testing.T) {
	c, err := collect(t.Context(), small, t.TempDir(), build.Stamp{Version: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(c.own[0].from).Output()
	if err != nil || string(out) != "v1.2.3\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

// Docker, and everything that reads what it writes, goes by manifest.json; containerd and podman go by index.json.
func TestArchiveReadsAsDockerAndAsOCI(t *testing.T) {
	out := buildImage(t, small, "v1")
	img, err := tarball.ImageFromPath(out, &testTag)
	if err != nil {
		t.Fatal(err)
	}
	config := must(img.ConfigFile())
	if d := cmp.Diff([]string{"/usr/local/bin/weft-agent"}, config.Config.Entrypoint); d != "" {
		t.Errorf("entrypoint (-want +got):\n%s", d)
	}

	blobs := entries(t, bytes.NewReader(must(os.ReadFile(out))))
	var index v1.IndexManifest
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "weft.io/weft:test" {
		t.Fatalf("index.json: %s", blobs["index.json"])
	}
	data, ok := blobs[blobPath(index.Manifests[0].Digest)]
	if !ok || int64(len(data)) != index.Manifests[0].Size {
		t.Fatalf("the manifest is not in the archive with %d bytes", index.Manifests[0].Size)
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range append(slices.Clone(manifest.Layers), manifest.Config) {
		if got := int64(len(blobs[blobPath(d.Digest)])); got != d.Size {
			t.Errorf("blob %d of the manifest has %d bytes in the archive, want %d", i, got, d.Size)
		}
	}
	for i, diffID := range config.RootFS.DiffIDs {
		if got := must(must(img.Layers())[i].DiffID()); got != diffID {
			t.Errorf("layer %d unpacks to %v, the config says %v", i, got, diffID)
		}
	}
}

func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = must(io.ReadAll(tr))
	}
}

func TestLayerIsSortedAndHasParents(t *testing.T) {
	var b bytes.Buffer
	err := writeLayer(&b, []file{
		{path: "var/run", mode: fs.ModeSymlink, link: "../run"},
		{path: "opt/weft/cni/weft-cni", mode: 0o755, content: "x"},
		{path: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{path: "opt/weft/a", mode: 0o644},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(epoch) {
			t.Errorf("%s has an owner or a time: %+v", h.Name, h)
		}
		fmt.Fprintf(&got, "%c %o %s %s\n", h.Typeflag, h.Mode, h.Name, h.Linkname)
	}
	want := `5 755 opt/ 
5 755 opt/weft/ 
0 644 opt/weft/a 
5 755 opt/weft/cni/ 
0 755 opt/weft/cni/weft-cni 
5 1777 tmp/ 
5 755 var/ 
2 777 var/run ../run
`
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestDirHasTheFilesOfTheLayer(t *testing.T) {
	c, err := collect(t.Context(), small, t.TempDir(), build.Stamp{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := writeDir(dir, c.system); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeLayer(&b, c.system); err != nil {
		t.Fatal(err)
	}
	layer := tar.NewReader(&b)
	for {
		h, err := layer.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(filepath.Join(dir, h.Name))
		if err != nil {
			t.Error(err)
			continue
		}
		if got, want := info.Mode(), h.FileInfo().Mode(); got != want {
			t.Errorf("%s is %v in the directory, %v in the layer", h.Name, got, want)
		}
	}
}

func TestWhatIsMissingStopsTheBuild(t *testing.T) {
	for _, tc := range []struct {
		name string
		from contents
		want []string
	}{
		{"program", contents{programs: []program{{"no-such-program", "some-package"}}},
			[]string{"no-such-program is not installed", "apt-get install some-package"}},
		{"package", contents{modules: []module{{dir: ".", packages: []goPackage{{"./cmd/no-such-command", build.BinDir}}}}},
			[]string{"compile in ", "cmd/no-such-command: directory not found"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := collect(t.Context(), tc.from, t.TempDir(), build.Stamp{Version: "v1"})
			if err == nil {
				t.Fatal("the build went on")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestArguments(t *testing.T) {
	for want, args := range map[string][]string{
		"REGISTRY/NAME:TAG":           {"-tag", "weft"},
		`unexpected argument "extra"`: {"extra"},
	} {
		if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %s", args, err, want)
		}
	}
}

func TestParseLdd(t *testing.T) {
	libs, err := parseLdd("/usr/bin/x", []byte("\tlinux-vdso.so.1 (0x00007ffd)\n"+
		"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}, libs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := parseLdd("/usr/bin/x", []byte("\tlibgone.so.1 => not found\n")); err == nil ||
		!strings.Contains(err.Error(), "needs libgone.so.1") {
		t.Errorf("a missing library: got %v", err)
	}
}
