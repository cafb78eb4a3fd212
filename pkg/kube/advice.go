package kube

import (
	"crypto/tls"
	"errors"
	"net"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Advice says what to do about an error of the API server, or "" where the error says enough. server is the setting
// apiServer.
func Advice(err error, server string) string {
	var network net.Error
	switch {
	case err == nil:
		return ""
	case apierrors.IsUnauthorized(err):
		return "it does not accept the agent's token: does apiServer lead to this cluster?"
	case apierrors.IsForbidden(err):
		return "the agent's ClusterRole does not allow that: apply the manifest of the agent's version"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return "set apiServer to a name or address in the certificate of this cluster's API server"
	case !errors.As(err, &network):
		return ""
	case server == "":
		return "set apiServer to an address of the API server: nothing serves the Service kubernetes before the agent does"
	}
	return "does apiServer, " + server + ", lead to the API server from this node?"
}
