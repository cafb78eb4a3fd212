package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte("code"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := Image{Tag: "weft.test/sample:1", Aliases: []string{"registry.test/more/sample:2"}, Entrypoint: []string{
		"/bin/program"}, Cmd: []string{"run"}, Files: []File{
		{Path: "/bin/program", Source: source},
		{Path: "/bin/link", Link: "program"},
		{Path: "/tmp/note", Content: "text", Mode: 0o644},
	}}
	out := filepath.Join(dir, "image.tar")
	if err := want.Write(out); err != nil {
		t.Fatal(err)
	}
	var img v1.Image
	for _, text := range []string{want.Tag, want.Aliases[0]} {
		tag, err := name.NewTag(text)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = tarball.ImageFromPath(out, &tag); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || !cmp.Equal(config.Config.Entrypoint, want.Entrypoint) ||
		!cmp.Equal(config.Config.Cmd, want.Cmd) {
		t.Errorf("config is %+v", config)
	}
	type entry struct {
		Name, Link, Content string
		Mode                int64
	}
	var got []entry
	files := mutate.Extract(img)
	defer files.Close()
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var content bytes.Buffer
		if _, err := io.Copy(&content, r); err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{h.Name, h.Linkname, content.String(), h.Mode})
	}
	wantEntries := []entry{
		{"bin", "", "", 0o755}, {"bin/program", "", "code", 0o755}, {"bin/link", "program", "", 0o755},
		{"tmp", "", "", 0o1777}, {"tmp/note", "", "text", 0o644},
	}
	if diff := cmp.Diff(wantEntries, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestParseLdd(t *testing.T) {
	got, err := parseLdd(
		"\tlinux-vdso.so.1 (0x1)\n\tlibtinfo.so.6 => /lib/x86_64-linux-gnu/libtinfo.so.6 (0x2)\n" +
			"\t/lib64/ld-linux-x86-64.so.2 (0x3)\n")
	if diff := cmp.Diff([]string{"/lib/x86_64-linux-gnu/libtinfo.so.6", "/lib64/ld-linux-x86-64.so.2"}, got); err != nil ||
		diff != "" {
		t.Errorf("libraries (-want +got): %v\n%s", err, diff)
	}
	if _, err := parseLdd("\tlibgone.so.1 => not found\n"); err == nil {
		t.Errorf("a missing library gave no error")
	}
}

func TestAgnhost(t *testing.T) {
	img, err := Agnhost(t.Context(), "/usr/agnhost", "/usr/sctp", "/usr/coredns")
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]File{}
	for _, f := range img.Files {
		if _, double := byPath[f.Path]; double {
			t.Errorf("%s is there twice", f.Path)
		}
		byPath[f.Path] = f
	}
	if byPath["/bin/nc"].Link != "nc.openbsd" || byPath["/bin/nc.openbsd"].Source == "" ||
		byPath["/coredns"].Source != "/usr/coredns" {
		t.Errorf("nc is %+v and CoreDNS %+v; want OpenBSD's, and a copy of /usr/coredns", byPath["/bin/nc"],
			byPath["/coredns"])
	}
	if byPath["/agnhost"].Source != "/usr/sctp" || byPath["/agnhost.upstream"].Source != "/usr/agnhost" {
		t.Errorf("agnhost is %+v, want the program with SCTP of its own before upstream's", byPath["/agnhost"])
	}
	if byPath["/bin/sh"].Link != "bash" || byPath["/bin/wget"].Source == "" || byPath["/bin/grep"].Link != "busybox" {
		t.Errorf("sh is %+v, wget %+v, grep %+v; want bash, a copy, and busybox's", byPath["/bin/sh"], byPath["/bin/wget"],
			byPath["/bin/grep"])
	}
}
