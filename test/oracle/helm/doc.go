// Package helm renders the chart (deploy/helm/weft) with Helm's own code and the kustomize base (deploy) with
// kustomize's. deploy/weft.yaml is made here from the chart. A module of its own, because both require many modules.
package helm
