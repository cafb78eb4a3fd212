package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/weft-cni/weft/build"
	"github.com/weft-cni/weft/internal/testing/testenv"
)

// contents lists what an image is made of.
type contents struct {
	// programs, and files that they need, are looked up on the machine that builds and come with their libraries.
	programs []program
	modules  []module
}

// program is a program by its name, or any file by its absolute path.
type program struct {
	name string
	// pkg is the Debian package that has it, for the message when it is missing.
	pkg string
}

// paths are where packages install the program, relative to the root.
func (p program) paths() []string {
	if path.IsAbs(p.name) {
		return []string{p.name[1:]}
	}
	var paths []string
	for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
		paths = append(paths, path.Join(dir, p.name))
	}
	return paths
}

// module is a Go module of this repository and what is compiled from it.
type module struct {
	dir      string
	packages []goPackage
}

// goPackage is a main package and the directory in the image for its program.
type goPackage struct{ path, dest string }

// weft is the image that is released; deploy/openvswitch.yaml runs its Open vSwitch. The plugins run on the node, with
// the node's iptables or nft; so none of what they call is in here.
var weft = contents{
	programs: []program{
		{"ovs-appctl", "openvswitch-common"},
		{"ovs-ofctl", "openvswitch-common"},
		{"ovs-vsctl", "openvswitch-switch"},
		{"ovsdb-server", "openvswitch-common"},
		{"ovsdb-tool", "openvswitch-common"},
		{"/usr/lib/openvswitch-switch/ovs-vswitchd", "openvswitch-switch"}, // Debian's alternative, linked in skeleton
		{"/usr/share/openvswitch/vswitch.ovsschema", "openvswitch-switch"},
		{"nft", "nftables"},
	},
	modules: []module{{
		dir: ".",
		packages: []goPackage{
			{"./cmd/weft-agent", build.BinDir},
			{"./cmd/weftctl", build.BinDir},
			{"./cmd/weft-cni", build.CNIDir},
		},
	}, {
		dir: "build/plugins",
		packages: []goPackage{
			{"github.com/containernetworking/plugins/plugins/main/loopback", build.CNIDir},
			{"github.com/containernetworking/plugins/plugins/meta/bandwidth", build.CNIDir},
			{"github.com/containernetworking/plugins/plugins/meta/portmap", build.CNIDir},
		},
	}},
}

// file is an entry of a layer. Exactly one of from, content and link is set, except for directories.
type file struct {
	path    string // in the image, without the leading slash
	mode    fs.FileMode
	from    string // a file on the building machine with the content
	content string
	link    string // the target of a symbolic link
}

// collected is an image's files, layer by layer.
type collected struct{ system, own []file }

// collect compiles and looks up everything; scratch keeps the compiled programs and must outlive the result.
func collect(ctx context.Context, want contents, scratch string, stamp build.Stamp) (collected, error) {
	root, err := testenv.Repository()
	if err != nil {
		return collected{}, err
	}
	var c collected
	if c.system, err = systemFiles(ctx, want.programs); err != nil {
		return collected{}, err
	}
	for i, m := range want.modules {
		files, err := compile(ctx, filepath.Join(root, m.dir), m.packages, filepath.Join(scratch, fmt.Sprint(i)),
			runtime.GOARCH, stamp)
		if err != nil {
			return collected{}, err
		}
		c.own = append(c.own, files...)
	}
	return c, nil
}

// compile builds the packages of one module so that neither the directory, the time nor the state of git shows in them.
func compile(
	ctx context.Context, dir string, packages []goPackage, out, arch string, stamp build.Stamp,
) ([]file, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	args := []string{
		"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= " + stamp.LinkerFlags(),
		"-o", out + string(filepath.Separator),
	}
	files := make([]file, 0, len(packages))
	for _, p := range packages {
		program := path.Base(p.path)
		args = append(args, p.path)
		files = append(files, file{path: strings.TrimPrefix(path.Join(p.dest, program), "/"), mode: 0o755,
			from: filepath.Join(out, program)})
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off", "GOOS=linux",
		"GOARCH="+arch)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile in %s: %w: %s", dir, err, strings.TrimSpace(string(msg)))
	}
	return files, nil
}
