package main

import (
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// debPackage is a Debian package, unpacked into a directory of its own.
type debPackage struct {
	name, version, arch, source string
	control                     string // its control file, as dpkg has it
	dir                         string
}

// licence is the package's copyright file, with the licences' texts or the names of those that Debian's base-files has.
func (p debPackage) licence() (string, error) {
	data, err := os.ReadFile(filepath.Join(p.dir, "usr/share/doc", p.name, "copyright"))
	return string(data), err
}

// resolve follows the links of a file of the package. One that is absolute means the root that the package is for.
func (p debPackage) resolve(name string) (string, error) {
	const most = 10
	for range most {
		where := filepath.Join(p.dir, path.Join("/", name)) // never above the directory
		info, err := os.Lstat(where)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return where, err
		}
		target, err := os.Readlink(where)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		name = target
	}
	return "", fmt.Errorf("%s of package %s: too many links", name, p.name)
}

// debianSystem downloads the packages of the programs and of the libraries that they need, for any architecture, and
// collects from them what systemFiles collects from the machine that builds. The cache keeps the downloads; apt-get
// works on a state of its own there and changes nothing else.
func debianSystem(ctx context.Context, cache, arch string, programs []program) ([]file, []debPackage, error) {
	packages, err := downloadPackages(ctx, filepath.Join(cache, arch), arch, programs)
	if err != nil {
		return nil, nil, fmt.Errorf("Debian packages for %s: %w", arch, err) //nolint:staticcheck // a name
	}
	return fromPackages(packages, programs)
}

const aptConfig = `APT::Architecture %[2]q;
APT::Architectures { %[2]q; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
`

func downloadPackages(ctx context.Context, dir, arch string, programs []program) ([]debPackage, error) {
	debs := filepath.Join(dir, "debs")
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(dir, "apt.conf")
	if err := errors.Join(
		os.WriteFile(config, fmt.Appendf(nil, aptConfig, dir, arch), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644), // nothing is installed, so every dependency is listed
	); err != nil {
		return nil, err
	}
	apt := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Dir, cmd.Env = debs, append(os.Environ(), "APT_CONFIG="+config, "LC_ALL=C")
		return output(cmd)
	}
	if _, err := apt("update"); err != nil {
		return nil, err
	}
	install := []string{"install", "--print-uris", "-qq"}
	wanted := map[string]bool{}
	for _, p := range programs {
		if !wanted[p.pkg] {
			install = append(install, p.pkg)
		}
		wanted[p.pkg] = true
	}
	list, err := apt(install...)
	if err != nil {
		return nil, err
	}
	get := []string{"download"}
	var files []string
	for line := range strings.Lines(list) { // 'URI' FILE SIZE, and HASH where the repository has one
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasSuffix(fields[1], ".deb") {
			continue
		}
		name, rest, _ := strings.Cut(fields[1], "_")
		version, _, _ := strings.Cut(rest, "_")
		if wanted[name] || strings.HasPrefix(name, "lib") || name == "zlib1g" {
			get = append(get, name+"="+strings.ReplaceAll(version, "%3a", ":"))
			files = append(files, filepath.Join(debs, fields[1]))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("apt-get lists no packages: %q", list)
	}
	if _, err := apt(get...); err != nil {
		return nil, err
	}
	var packages []debPackage
	for _, file := range files {
		p, err := unpack(ctx, file, filepath.Join(dir, "root", strings.TrimSuffix(filepath.Base(file), ".deb")))
		if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
	return packages, nil
}

// unpack extracts a package and reads its control file.
func unpack(ctx context.Context, file, dir string) (debPackage, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		tmp := dir + ".part"
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return debPackage{}, err
		}
		if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", file, tmp)); err != nil {
			return debPackage{}, err
		}
		if err := os.Rename(tmp, dir); err != nil {
			return debPackage{}, err
		}
	}
	control, err := output(exec.CommandContext(ctx, "dpkg-deb", "-f", file))
	if err != nil {
		return debPackage{}, err
	}
	return parseControl(control, dir)
}

func parseControl(control, dir string) (debPackage, error) {
	p := debPackage{control: control, dir: dir}
	for line := range strings.Lines(control) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Package":
			p.name = value
		case "Version":
			p.version = value
		case "Architecture":
			p.arch = value
		case "Source":
			p.source = value
		}
	}
	p.source = cmp.Or(p.source, p.name)
	if p.name == "" || p.version == "" || p.arch == "" {
		return p, fmt.Errorf("invalid control file: %q", control)
	}
	return p, nil
}

// output runs a command and returns what it prints; its error has what it complained of.
func output(cmd *exec.Cmd) (string, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[:min(3, len(cmd.Args))], " "), err,
			strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}

// finder finds files in unpacked packages, and remembers which packages it took any from.
type finder struct {
	packages []debPackage
	used     map[int]bool
	files    []file
	seen     map[string]bool // by path in the image
	libDirs  []string
}

// fromPackages collects programs, and the libraries that their ELF headers ask for.
func fromPackages(packages []debPackage, programs []program) ([]file, []debPackage, error) {
	f := finder{packages: packages, used: map[int]bool{}, files: slices.Clone(skeleton), seen: map[string]bool{}}
	f.libDirs = f.findLibDirs()
	for _, p := range programs {
		paths := p.paths()
		i := slices.IndexFunc(paths, f.has)
		if i < 0 {
			return nil, nil, fmt.Errorf("%s: %w in package %s", p.name, fs.ErrNotExist, p.pkg)
		}
		if err := f.add(paths[i]); err != nil {
			return nil, nil, err
		}
	}
	var used []debPackage
	for i, p := range packages {
		if !f.used[i] {
			continue
		}
		used = append(used, p)
		licence, err := p.licence()
		if err != nil {
			return nil, nil, fmt.Errorf("the licence of package %s: %w", p.name, err)
		}
		// Scanners of images find packages here, one in a file; so does distroless.
		f.files = append(f.files, file{path: "var/lib/dpkg/status.d/" + p.name, mode: 0o644, content: p.control},
			file{path: "usr/share/doc/" + p.name + "/copyright", mode: 0o644, content: licence})
	}
	slices.SortFunc(used, func(a, b debPackage) int { return cmp.Compare(a.name, b.name) })
	return f.files, used, nil
}

// findLibDirs lists the directories of libraries: lib, lib64 and those of an architecture in them.
func (f *finder) findLibDirs() []string {
	dirs := []string{"lib", "usr/lib", "lib64", "usr/lib64"}
	for _, p := range f.packages {
		for _, pattern := range []string{"lib/*-linux-gnu*", "usr/lib/*-linux-gnu*"} {
			found, _ := filepath.Glob(filepath.Join(p.dir, pattern)) // the pattern is valid
			for _, dir := range found {
				if rel, err := filepath.Rel(p.dir, dir); err == nil && !slices.Contains(dirs, rel) {
					dirs = append(dirs, rel)
				}
			}
		}
	}
	return dirs
}

func (f *finder) has(name string) bool {
	return slices.ContainsFunc(f.packages, func(p debPackage) bool {
		_, err := p.resolve(name)
		return err == nil
	})
}

// add takes a file, and what it needs.
func (f *finder) add(name string) error {
	target := merged(name)
	if f.seen[target] {
		return nil
	}
	for i, p := range f.packages {
		from, err := p.resolve(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		f.seen[target], f.used[i] = true, true
		f.files = append(f.files, file{path: target, mode: 0o755, from: from})
		return f.addNeeds(from)
	}
	return fmt.Errorf("%s: %w in the packages", name, fs.ErrNotExist)
}

// addNeeds takes the loader and the libraries of a program or library.
func (f *finder) addNeeds(from string) error {
	header, err := elf.Open(from)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return nil // neither program nor library
	}
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer header.Close()
	for _, section := range header.Progs {
		if section.Type == elf.PT_INTERP {
			data := make([]byte, section.Filesz)
			if _, err := section.ReadAt(data, 0); err != nil {
				return fmt.Errorf("%s: %w", from, err)
			}
			if err := f.add(strings.Trim(string(data), "\x00/")); err != nil {
				return err
			}
		}
	}
	needed, err := header.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	for _, lib := range needed {
		err := fs.ErrNotExist
		for _, dir := range f.libDirs {
			if err = f.add(path.Join(dir, lib)); err == nil || !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", from, lib, err)
		}
	}
	return nil
}

// merged is a path below Debian's merged /usr, for which the skeleton has links.
func merged(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}
