// Package build holds what the image and the manifests that use it agree on. It keeps no state.
package build

const (
	// Version is the release that this tree becomes, or is: the chart's appVersion, and the tag in deploy/weft.yaml.
	Version = "v0.2.0"
	// Repository is where releases are pulled from; make push can send them elsewhere.
	Repository = "weft.io/weft"
	// Image is the name of the image that test/image makes and deploy/weft.yaml runs.
	Image = Repository + ":" + Version
	// BinDir is the directory of weft-agent and weftctl in the image.
	BinDir = "/usr/local/bin"
	// CNIDir is the directory in the image of what `weft-agent install-cni` copies to the node.
	CNIDir = "/opt/weft/cni"
)

// Stamp is what a program says of its origin. An empty commit leaves it to what the go command records.
type Stamp struct{ Version, Commit string }

// LinkerFlags are the flags of the linker that stamp a program of Weft.
func (s Stamp) LinkerFlags() string {
	const name = "github.com/weft-cni/weft/internal/version."
	flags := "-X " + name + "version=" + s.Version
	if s.Commit != "" {
		flags += " -X " + name + "commit=" + s.Commit
	}
	return flags
}
