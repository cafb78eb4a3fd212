package apiserver

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
)

// shortNames are those that people write.
var shortNames = map[string][]string{Nodes: {"no"}, Namespaces: {"ns"}, Pods: {"po"}, Services: {"svc"}, NetworkPolicies: {"netpol"},
	ClusterNetworkPolicies: {"cnp"}}

// serveDiscovery tells kubectl which resources there are.
func serveDiscovery(mux *http.ServeMux) {
	groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	lists := map[string]metav1.APIResourceList{}
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		r := resources[name]
		list, known := lists[r.prefix()]
		if !known {
			list.TypeMeta = metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}
			list.GroupVersion = r.group.String()
			if r.group.Group != "" {
				v := metav1.GroupVersionForDiscovery{GroupVersion: r.group.String(), Version: r.group.Version}
				groups.Groups = append(groups.Groups, metav1.APIGroup{Name: r.group.Group,
					Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
			}
		}
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name, SingularName: strings.ToLower(r.kind),
			Namespaced: r.namespaced, Kind: r.kind, Verbs: metav1.Verbs{"get", "list", "watch"}, ShortNames: shortNames[name]})
		lists[r.prefix()] = list
	}
	serve := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, v) })
	}
	serve("/api", metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	serve("/apis", groups)
	serve("/version", version.Info{Major: "1", Minor: "33", GitVersion: "v1.33.0+weft-lab"})
	for prefix, list := range lists {
		serve(prefix, list)
	}
}
