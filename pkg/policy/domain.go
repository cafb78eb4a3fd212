package policy

import (
	"fmt"
	"strings"
)

// Domain is a name of a peer's domainNames in canonical form: lower case, without the final dot. One that begins with
// "*." matches names with one or more labels in the place of the asterisk.
type Domain string

// maxDomain and maxLabel are the longest name and label (RFC 1035, section 2.3.4).
const maxDomain, maxLabel = 253, 63

// wildcard begins a Domain that matches the names below it.
const wildcard = "*."

// ParseDomain reads a domain name as the API has it (sigs.k8s.io/network-policy-api, DomainName): at least two labels
// of letters, digits, hyphens and underscores, with or without a final dot.
func ParseDomain(text string) (Domain, error) {
	name := CanonicalName(text)
	labels := strings.Split(strings.TrimPrefix(name, wildcard), ".")
	if len(name) > maxDomain || len(labels) < 2 {
		return "", fmt.Errorf("invalid domain name %q: at most %d characters and at least two labels", text, maxDomain)
	}
	for _, label := range labels {
		if !validLabel(label) {
			return "", fmt.Errorf("invalid domain name %q: label %q", text, label)
		}
	}
	return Domain(name), nil
}

func validLabel(label string) bool {
	if label == "" || len(label) > maxLabel {
		return false
	}
	for i, r := range label {
		switch inner := i > 0 && i < len(label)-1; {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
		case r == '-' && inner:
		default:
			return false
		}
	}
	return true
}

// CanonicalName is a name in the form in which names are compared.
func CanonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Matches says whether a canonical name is the domain or, of a wildcard, below it.
func (d Domain) Matches(name string) bool {
	below, ok := strings.CutPrefix(string(d), wildcard)
	if !ok {
		return name == string(d)
	}
	prefix, ok := strings.CutSuffix(name, "."+below)
	return ok && prefix != ""
}
