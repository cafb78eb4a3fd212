//go:build integration

package host

import (
	"slices"
	"strings"
	"testing"
)

// TestProxyRules: kube-proxy's chains are found in both of its modes, and the kubelet's are not taken for them.
func TestProxyRules(t *testing.T) {
	n := newNode(t)
	rules := func() []string {
		t.Helper()
		list, err := ProxyRules()
		if err != nil {
			t.Error(err)
		}
		return list
	}
	n.run("nft add table ip mangle; nft add chain ip mangle KUBE-KUBELET-CANARY")
	if got := rules(); len(got) > 0 {
		t.Errorf("without kube-proxy: %q", got)
	}
	n.run("nft add table ip nat; nft add chain ip nat KUBE-SERVICES")
	n.run("nft add table ip6 kube-proxy; nft add chain ip6 kube-proxy services; nft add chain ip6 kube-proxy endpoints")
	if got, want := rules(), []string{"ip nat KUBE-SERVICES", "ip6 kube-proxy"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestKernelDatapath: a kernel without the module is named as such, with what to do; one that has it is not. Which of
// them this machine's is, the family of generic netlink itself, which every kernel has, and one that none has stand for
// both.
func TestKernelDatapath(t *testing.T) {
	n := newNode(t)
	err := KernelDatapath() // may load the module
	has := strings.TrimSpace(n.run("if test -e /sys/module/openvswitch; then echo yes; fi")) == "yes"
	if (err == nil) != has {
		t.Errorf("the kernel has the module: %t; %v", has, err)
	}
	if err := kernelServes("nlctrl"); err != nil {
		t.Error(err)
	}
	if err := kernelServes("weft_none"); err == nil || !strings.Contains(err.Error(), "modprobe openvswitch") {
		t.Errorf("without the family: %v", err)
	}
}
