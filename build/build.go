// Package build holds what the image and the manifests that use it agree on. It keeps no state.
package build

const (
	// Image is the name of the image that test/image makes and deploy/weft.yaml runs.
	Image = "weft.io/weft:dev"
	// BinDir is the directory of weft-agent and weftctl in the image.
	BinDir = "/usr/local/bin"
	// CNIDir is the directory in the image of what `weft-agent install-cni` copies to the node.
	CNIDir = "/opt/weft/cni"
)
