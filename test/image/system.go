package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// skeleton is what programs expect of any root file system. The links are Debian's merged /usr, so that the loader and
// the libraries are found under both of their names.
var skeleton = []file{
	{path: "bin", mode: fs.ModeSymlink, link: "usr/bin"},
	{path: "lib", mode: fs.ModeSymlink, link: "usr/lib"},
	{path: "lib64", mode: fs.ModeSymlink, link: "usr/lib64"},
	{path: "sbin", mode: fs.ModeSymlink, link: "usr/sbin"},
	{path: "usr/sbin/ovs-vswitchd", mode: fs.ModeSymlink, link: "../lib/openvswitch-switch/ovs-vswitchd"},
	{path: "usr/lib64", mode: fs.ModeDir | 0o755},
	{path: "etc/passwd", mode: 0o644, content: "root:x:0:0:root:/:/usr/sbin/nologin\n"},
	{path: "etc/group", mode: 0o644, content: "root:x:0:\n"},
	{path: "run", mode: fs.ModeDir | 0o755},
	{path: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
	{path: "var/run", mode: fs.ModeSymlink, link: "../run"},
}

// systemFiles finds the programs and the libraries that they need.
func systemFiles(ctx context.Context, programs []program) ([]file, error) {
	files := slices.Clone(skeleton)
	seen := map[string]bool{}
	add := func(where string) error {
		f, err := systemFile(where)
		if err != nil || seen[f.path] {
			return err
		}
		seen[f.path] = true
		files = append(files, f)
		return nil
	}
	for _, p := range programs {
		where, err := lookup(p)
		if err != nil {
			return nil, err
		}
		libs, err := libraries(ctx, where)
		if err != nil {
			return nil, err
		}
		for _, f := range append(libs, where) {
			if err := add(f); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// systemFile keeps the name by which a file is asked for, in the directory where it really is, with the content behind
// all links: /lib/x86_64-linux-gnu/libc.so.6 becomes a plain file in usr/lib/x86_64-linux-gnu.
func systemFile(where string) (file, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(where))
	if err != nil {
		return file{}, fmt.Errorf("find %s: %w", where, err)
	}
	from, err := filepath.EvalSymlinks(where)
	if err != nil {
		return file{}, fmt.Errorf("find %s: %w", where, err)
	}
	// The loader has to be executable like the programs; that the libraries are too changes nothing.
	return file{path: strings.TrimPrefix(filepath.Join(dir, filepath.Base(where)), "/"), mode: 0o755, from: from}, nil
}

// lookup looks where packages install, not in PATH: local programs in /usr/local must not end in an image.
func lookup(p program) (string, error) {
	for _, where := range p.paths() {
		if info, err := os.Stat("/" + where); err == nil && info.Mode().IsRegular() {
			return "/" + where, nil
		}
	}
	return "", fmt.Errorf("%s is not installed on this machine; apt-get install %s", p.name, p.pkg)
}

// libraries lists the shared libraries of a program, and of those, with the loader.
func libraries(ctx context.Context, where string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", where).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return nil, nil
		}
		return nil, fmt.Errorf("ldd %s: %w: %s", where, err, bytes.TrimSpace(out))
	}
	return parseLdd(where, out)
}

// parseLdd reads lines of the forms "NAME => PATH (ADDRESS)" and "PATH (ADDRESS)"; the kernel's vdso has no path.
func parseLdd(where string, out []byte) ([]string, error) {
	var libs []string
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		name, target, ok := strings.Cut(line, " => ")
		if !ok {
			target = line
		}
		lib, _, _ := strings.Cut(target, " (")
		switch {
		case strings.HasPrefix(lib, "/"):
			libs = append(libs, lib)
		case lib == "not found":
			return nil, fmt.Errorf("%s needs %s, which is not installed", where, name)
		}
	}
	return libs, lines.Err()
}
