package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// chain is one of nftables, as `nft --json list chains` shows it (libnftables-json(5)).
type chain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

func (c chain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// NFT runs nft with arguments on this machine, and returns what it writes.
func NFT(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "nft", args...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(string(failed.Stderr)))
	}
	return out, err
}

// rules looks for rules of other programs that are in Weft's way: chains that drop forwarded packets by policy, unless
// a rule of their table names Weft's interface, and kube-proxy's. Those of iptables-legacy are not in nftables.
func (h Host) rules(ctx context.Context) []Finding {
	forward := Finding{Check: "forwarded packets", Saw: "no chain of nftables drops them by policy"}
	proxy := Finding{Check: "kube-proxy's rules", Saw: "none in nftables"}
	fail := func(err error) []Finding {
		if errors.Is(err, exec.ErrNotFound) { // then it says nothing about the rules
			forward.Saw, proxy.Saw = "not known: nft not found", "not known: nft not found"
			return []Finding{forward, proxy}
		}
		return []Finding{unknown(forward, err), unknown(proxy, err)}
	}
	out, err := h.NFT(ctx, "--json", "list", "chains")
	if err != nil {
		return fail(err)
	}
	var list struct {
		NFTables []struct {
			Chain *chain `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return fail(fmt.Errorf("read what nft says: %w", err))
	}
	for _, o := range list.NFTables {
		switch c := o.Chain; {
		case c == nil:
		case c.Name == "KUBE-SERVICES" || c.Table == "kube-proxy":
			proxy.Saw = fmt.Sprintf("chain %s of table %s %s", c.Name, c.Family, c.Table)
			proxy.Do = "once Weft is ready, end kube-proxy and run kube-proxy --cleanup: its rules translate packets to Services first"
		case c.Hook == "forward" && c.Policy == "drop":
			table, err := h.NFT(ctx, "list", "table", c.Family, c.Table)
			if err != nil {
				return fail(err)
			}
			if !strings.Contains(string(table), model.GatewayName) {
				forward.Saw = fmt.Sprintf("chain %s drops them by policy", c)
				forward.Do = fmt.Sprintf("accept those from and to %[1]s there (iptables -I FORWARD -i %[1]s -j ACCEPT, and -o)",
					model.GatewayName)
			}
		}
	}
	return []Finding{forward, proxy}
}
