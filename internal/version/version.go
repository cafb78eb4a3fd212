// Package version says from which release and commit a program was built. The linker sets both (-X); a program that was
// built by hand has the commit that the go command recorded, if any. It keeps no state besides.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the linker: -X github.com/weft-cni/weft/internal/version.version=v1.2.3, and commit likewise.
var (
	version = "dev"
	commit  = ""
)

// unknown stands for a commit that was not recorded.
const unknown = "unknown"

// Info is what a program was built from.
type Info struct {
	// Version is the release, or "dev".
	Version string `json:"version"`
	// Commit is the full hash, with "-dirty" when files had been changed, or "unknown".
	Commit string `json:"commit"`
	// Go is the toolchain's version, Platform GOOS/GOARCH.
	Go       string `json:"goVersion"`
	Platform string `json:"platform"`
}

// Get is what this program was built from.
func Get() Info {
	build, _ := debug.ReadBuildInfo() // nil without modules, which Weft is never built without
	return Info{
		Version: version, Commit: commitOf(commit, build), Go: runtime.Version(), Platform: runtime.GOOS + "/" +
			runtime.GOARCH,
	}
}

// commitOf is what the linker set, or else what the go command recorded.
func commitOf(linked string, build *debug.BuildInfo) string {
	if linked != "" {
		return linked
	}
	hash, dirty := unknown, ""
	if build != nil {
		for _, s := range build.Settings {
			switch {
			case s.Key == "vcs.revision":
				hash = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-dirty"
			}
		}
	}
	if hash == unknown {
		return unknown
	}
	return hash + dirty
}

// String is a line for people: v1.2.3 (commit 0123456789ab, go1.26.0, linux/amd64).
func (i Info) String() string {
	const short = 12
	hash, dirty := strings.CutSuffix(i.Commit, "-dirty")
	if len(hash) > short {
		hash = hash[:short]
	}
	if dirty {
		hash += "-dirty"
	}
	return fmt.Sprintf("%s (commit %s, %s, %s)", i.Version, hash, i.Go, i.Platform)
}
