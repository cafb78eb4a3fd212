package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// epoch is the time of everything in the image.
var epoch = time.Unix(0, 0).UTC()

// writeLayer writes files as a tar whose bytes depend on nothing but the files: sorted, owned by root, at the epoch.
func writeLayer(w io.Writer, files []file) error {
	tw := tar.NewWriter(w)
	for _, f := range withParents(files) {
		if err := writeEntry(tw, f); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, f file) error { return writeEntryAt(tw, f, epoch) }

func writeEntryAt(tw *tar.Writer, f file, at time.Time) error {
	h := &tar.Header{Name: f.path, ModTime: at, Format: tar.FormatUSTAR, Mode: int64(f.mode.Perm())}
	switch {
	case f.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, f.path+"/"
		if f.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		return tw.WriteHeader(h)
	case f.mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		return tw.WriteHeader(h)
	}
	data, err := f.read()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, bytes.NewReader(data))
	return err
}

func (f file) read() ([]byte, error) {
	if f.from == "" {
		return []byte(f.content), nil
	}
	return os.ReadFile(f.from)
}

// withParents adds the directories that files are in and sorts: a directory comes before what is in it.
func withParents(files []file) []file {
	have := map[string]bool{".": true}
	for _, f := range files {
		have[f.path] = true
	}
	all := slices.Clone(files)
	for _, f := range files {
		for dir := path.Dir(f.path); !have[dir]; dir = path.Dir(dir) {
			have[dir] = true
			all = append(all, file{path: dir, mode: fs.ModeDir | 0o755})
		}
	}
	slices.SortFunc(all, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return all
}

// writeDir writes files below a directory, for a Dockerfile to copy.
func writeDir(root string, files []file) error {
	for _, f := range withParents(files) {
		if err := writeNode(filepath.Join(root, filepath.FromSlash(f.path)), f); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}

func writeNode(where string, f file) error {
	if err := os.MkdirAll(filepath.Dir(where), 0o755); err != nil {
		return err
	}
	switch {
	case f.mode.IsDir():
		if err := os.MkdirAll(where, 0o755); err != nil {
			return err
		}
		return os.Chmod(where, f.mode.Perm()|f.mode&fs.ModeSticky) // the umask has no say in an image
	case f.mode&fs.ModeSymlink != 0:
		return os.Symlink(f.link, where)
	}
	data, err := f.read()
	if err != nil {
		return err
	}
	if err := os.WriteFile(where, data, f.mode.Perm()); err != nil {
		return err
	}
	return os.Chmod(where, f.mode.Perm())
}
