package main

import (
	"bytes"
	"context"
	_ "embed" // for the manifest
	"fmt"
	"net/netip"
	"os"
	"text/template"

	"github.com/weft-cni/weft/test/cluster/image"
	"github.com/weft-cni/weft/test/cluster/state"
)

// clusterDomain is what the names of Services end with.
const clusterDomain = "cluster.local"

//go:embed dns.yaml
var dnsManifest string

// renderDNS is the manifest of the cluster's DNS.
func renderDNS(plan state.Plan) ([]byte, error) {
	text, err := template.New("dns.yaml").Parse(dnsManifest)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	values := struct {
		Domain, Image string
		Addrs         []netip.Addr
	}{clusterDomain, image.CoreDNSTag, plan.DNS()}
	err = text.Execute(&out, values)
	return out.Bytes(), err
}

// deployDNS installs CoreDNS.
func deployDNS(ctx context.Context, p *progress, c state.Cluster) error {
	rendered := paths(c.Dir).join("dns.yaml")
	return p.step("kubectl apply -f "+rendered, func(func(string)) error {
		text, err := renderDNS(c.Plan)
		if err == nil {
			err = os.WriteFile(rendered, text, 0o644)
		}
		if err != nil {
			return fmt.Errorf("write the manifest of the cluster's DNS: %w", err)
		}
		_, err = kubectl(ctx, c, "apply", "-f", rendered)
		return err
	})
}
