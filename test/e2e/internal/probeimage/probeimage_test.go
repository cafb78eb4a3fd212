package probeimage

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// What was packed is read back with the library's own reader.
func TestPack(t *testing.T) {
	binary := []byte("not really a program")
	ref := reference(binary)
	file := filepath.Join(t.TempDir(), "image.tar")
	var packed bytes.Buffer
	if err := pack(&packed, ref, binary); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/probe"}, config.Config.Entrypoint); d != "" || config.OS != "linux" ||
		config.Architecture != runtime.GOARCH {
		t.Errorf("config %+v", config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	files, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	tr := tar.NewReader(files)
	header, err := tr.Next()
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(tr)
	if err != nil {
		t.Fatal(err)
	}
	if header.Name != "probe" || header.Mode&0o111 == 0 || !bytes.Equal(content, binary) {
		t.Errorf("file %q, mode %o, %d bytes", header.Name, header.Mode, len(content))
	}
	var again bytes.Buffer
	if err := pack(&again, ref, binary); err != nil || !bytes.Equal(again.Bytes(), packed.Bytes()) {
		t.Errorf("packing twice gives different images (%v)", err)
	}
}

func TestReferenceFollowsTheBinary(t *testing.T) {
	if a, b := reference([]byte("a")), reference([]byte("b")); a == b {
		t.Errorf("both are %s", a)
	}
}
