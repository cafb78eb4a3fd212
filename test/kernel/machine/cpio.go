package machine

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// entry is a regular file of an initial RAM disk.
type entry struct {
	path    string // without a leading slash
	mode    uint32
	content []byte
}

const (
	cpioDirectory  = 0o040000
	cpioRegular    = 0o100000
	cpioTrailer    = "TRAILER!!!"
	cpioHeaderSize = 110
)

// writeCPIO writes files, and the directories they are in, in the "newc" format that the kernel unpacks.
func writeCPIO(w io.Writer, entries []entry) error {
	inode := 0
	record := func(name string, mode uint32, content []byte) error {
		inode++
		// inode, mode, uid, gid, links, mtime, size, device, special device, length of the name with its NUL, checksum
		fields := []uint32{uint32(inode), mode, 0, 0, 1, 0, uint32(len(content)), 0, 0, 0, 0, uint32(len(name) + 1), 0}
		var b strings.Builder
		b.WriteString("070701")
		for _, f := range fields {
			fmt.Fprintf(&b, "%08x", f)
		}
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(padding(cpioHeaderSize + len(name) + 1))
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
		_, err := io.WriteString(w, padding(len(content)))
		return err
	}
	made := map[string]bool{".": true}
	var parents func(dir string) error
	parents = func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		if err := parents(path.Dir(dir)); err != nil {
			return err
		}
		return record(dir, cpioDirectory|0o755, nil)
	}
	for _, e := range entries {
		if err := parents(path.Dir(e.path)); err != nil {
			return err
		}
		if err := record(e.path, cpioRegular|e.mode, e.content); err != nil {
			return err
		}
	}
	return record(cpioTrailer, 0, nil)
}

// padding fills up to a multiple of four bytes.
func padding(size int) string { return strings.Repeat("\x00", -size&3) }
