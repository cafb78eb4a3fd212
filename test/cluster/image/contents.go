package image

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// The tags of the images that the cluster brings along.
const (
	PauseTag   = "weft.test/pause:1"
	AgnhostTag = "weft.test/agnhost:1"
	CoreDNSTag = "weft.test/coredns:1"
)

// UpstreamAgnhost is the name that Kubernetes' own specs have for their image, in the version that test/components
// pins.
const UpstreamAgnhost = "registry.k8s.io/e2e-test-images/agnhost:2.56"

// policyAgnhost is the name that network-policy-api's conformance tests have for it.
const policyAgnhost = "registry.k8s.io/e2e-test-images/agnhost:2.45"

// upstreamDNSUtils is their image with a resolver's tools, all of which agnhost's image has here.
const upstreamDNSUtils = "registry.k8s.io/e2e-test-images/jessie-dnsutils:1.7"

// Tools are the programs of this machine that go into the test image, with their libraries. The rest of the usual
// commands are busybox applets.
var Tools = []string{"bash", "busybox", "curl", "dig", "ethtool", "getent", "ip", "nc.openbsd", "nslookup", "ping",
	"wget"}

// Pause is the image of every pod's first process.
func Pause(binary string) Image {
	return Image{Tag: PauseTag, Entrypoint: []string{"/pause"}, Files: []File{{Path: "/pause", Source: binary}}}
}

// CoreDNS is the cluster's DNS server and nothing else.
func CoreDNS(binary string) Image {
	return Image{Tag: CoreDNSTag, Entrypoint: []string{"/coredns"}, Files: []File{{Path: "/coredns", Source: binary}}}
}

// Agnhost is the test image: Kubernetes' test server agnhost, a shell and network tools, and CoreDNS if there is its
// binary. The binary sctp, if there is one, stands before agnhost.
func Agnhost(ctx context.Context, binary, sctp, coreDNS string) (Image, error) {
	var files []File
	if sctp != "" {
		files = []File{{Path: "/agnhost", Source: sctp}, {Path: "/agnhost.upstream", Source: binary}}
	}
	files = merge(files, []File{
		{Path: "/agnhost", Source: binary},
		{Path: "/bin/nc", Link: "nc.openbsd"}, // busybox's has no UDP
		// A shell that is not busybox's: that one runs its own applets in place of the programs on the path.
		{Path: "/bin/sh", Link: "bash"},
		{Path: "/sbin", Link: "bin"},
		{Path: "/usr/bin", Link: "../bin"},
		{Path: "/usr/sbin", Link: "../bin"},
		{Path: "/etc/passwd", Content: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", Mode: 0o644},
		{Path: "/etc/group", Content: "root:x:0:\nnogroup:x:65534:\n", Mode: 0o644},
		{Path: "/etc/nsswitch.conf", Content: "hosts: files dns\n", Mode: 0o644},
		{Path: "/root/.keep", Mode: 0o644},
		{Path: "/tmp/.keep", Mode: 0o644},
	}...)
	if coreDNS != "" {
		files = append(files, File{Path: "/coredns", Source: coreDNS})
	}
	for _, tool := range Tools {
		binary, err := exec.LookPath(tool)
		if err != nil {
			return Image{}, fmt.Errorf("make image %s: %w", AgnhostTag, err)
		}
		files = merge(files, File{Path: "/bin/" + tool, Source: binary})
		libraries, err := libraries(ctx, binary)
		if err != nil {
			return Image{}, fmt.Errorf("make image %s: %w", AgnhostTag, err)
		}
		for _, lib := range libraries {
			files = merge(files, File{Path: lib, Source: lib})
		}
	}
	applets, err := exec.CommandContext(ctx, "busybox", "--list").Output()
	if err != nil {
		return Image{}, fmt.Errorf("make image %s: list busybox's applets: %w", AgnhostTag, err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		files = merge(files, File{Path: "/bin/" + applet, Link: "busybox"})
	}
	return Image{
		Tag: AgnhostTag, Aliases: []string{UpstreamAgnhost, policyAgnhost, upstreamDNSUtils}, Entrypoint: []string{
			"/agnhost"}, Cmd: []string{"pause"},
		Env:   []string{"PATH=/usr/local/bin:/bin:/", "HOME=/root"},
		Files: files,
	}, nil
}

// libraries returns the shared libraries that a program loads; a static one has none.
func libraries(ctx context.Context, binary string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", binary).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "not a dynamic executable") {
			return nil, nil
		}
		return nil, fmt.Errorf("find the libraries of %s: %w: %s", binary, err, strings.TrimSpace(string(out)))
	}
	found, err := parseLdd(string(out))
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: %w", binary, err)
	}
	return found, nil
}

func parseLdd(out string) ([]string, error) {
	var found []string
	for line := range strings.Lines(out) {
		name, target, hasTarget := strings.Cut(strings.TrimSpace(line), " => ")
		if hasTarget {
			name = target
		}
		if strings.HasPrefix(name, "not found") {
			return nil, fmt.Errorf("library missing: %s", strings.TrimSpace(line))
		}
		path, _, _ := strings.Cut(name, " ")
		if strings.HasPrefix(path, "/") {
			found = append(found, path)
		}
	}
	return found, nil
}
