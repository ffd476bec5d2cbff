package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/describe"
	"k8s.io/kubectl/pkg/drain"
	explain "k8s.io/kubectl/pkg/explain/v2"
	"k8s.io/kubectl/pkg/polymorphichelpers"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
	"countersign/gate"
	"countersign/tools"
)

// kubectl runs kubectl's own code for one call. What that code sends goes to no
// cluster: every request of its clients becomes an Action and is read, or not,
// by the gate; a patch is kept and never sent.
type kubectl struct {
	ctx     context.Context
	cluster string
	one     *cluster
	read    func(context.Context, action.Action) (tools.Response, error)

	mu sync.Mutex
	// masked says that the answers are shown and not sent on.
	masked bool
	// failed is why the last request failed, as the gate told it. kubectl's code
	// hands on no more than its text.
	failed error
	// patch is what was to be sent.
	patch *action.Action
}

// Kubectl implements gate.Cluster.
func (c *Clusters) Kubectl(ctx context.Context, cluster string, read func(context.Context, action.Action) (tools.Response, error)) tools.Kubectl {
	return &kubectl{ctx: ctx, cluster: cluster, one: c.byName[cluster], read: read}
}

// config is for clients that know of no other way than RoundTrip.
func (k *kubectl) config() *rest.Config {
	return &rest.Config{Host: "https://" + gated, Transport: k, QPS: -1}
}

// gated is the name of no host: the transport sends nothing anywhere.
const gated = "gate.invalid"

func (k *kubectl) client() (kubernetes.Interface, error) { return kubernetes.NewForConfig(k.config()) }

// RoundTrip implements http.RoundTripper.
func (k *kubectl) RoundTrip(req *http.Request) (*http.Response, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := actionOf(req)
	if err != nil {
		return nil, err
	}
	a.Cluster = k.cluster
	// The path does not say whether a list without a namespace is of what lies in
	// none, or over all: rules on namespaces hang on it.
	resource, err := k.one.resolve("", a.Resource.GroupResource())
	if err != nil || resource.Version != a.Resource.Version || resource.Resource != a.Resource.Resource {
		k.failed = tools.BadArgument("this cluster does not serve %s, which is needed here", a.Resource.Path())
		return nil, k.failed
	}
	a.Resource = resource
	var body []byte
	if a.Verb == action.Patch {
		k.patch, body = &a, []byte("{}")
	} else {
		var answer tools.Response
		answer, err = k.read(k.ctx, a)
		body = answer.Body
	}
	if err == nil && k.masked {
		body, err = maskBody(a, body)
	}
	code := http.StatusOK
	if err != nil {
		k.failed = err
		var refused *gate.APIError
		if !errors.As(err, &refused) {
			return nil, err
		}
		code = refused.Code
		body, err = action.Canonical(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status:   metav1.StatusFailure, Code: int32(refused.Code), Reason: metav1.StatusReason(refused.Reason), Message: refused.Message,
		})
		if err != nil {
			return nil, err
		}
	}
	return &http.Response{
		StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

// maskBody masks what kubectl's code is going to write out.
func maskBody(a action.Action, body []byte) ([]byte, error) {
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &object); err != nil {
		return nil, fmt.Errorf("reading the API server's answer to %s: %w", a, err)
	}
	if a.Resource.GroupResource() != "secrets" {
		object, _ = audit.Mask(object).(map[string]any)
		for _, one := range append([]any{object}, list(object["items"])...) {
			object, _ := one.(map[string]any)
			binary, _ := object["binaryData"].(map[string]any)
			for key, value := range binary {
				if value == audit.Masked { // which is not base64
					binary[key] = ""
				}
			}
		}
		return action.Canonical(object)
	}
	// Of a Secret kubectl shows how long each value is, which need not be known either.
	for _, one := range append([]any{object}, list(object["items"])...) {
		if secret, ok := one.(map[string]any); ok {
			delete(secret, "stringData")
			data, _ := secret["data"].(map[string]any)
			for key := range data {
				data[key] = ""
			}
			if meta, ok := secret["metadata"].(map[string]any); ok {
				secret["metadata"] = audit.Mask(meta)
			}
		}
	}
	return action.Canonical(object)
}

func list(v any) []any {
	items, _ := v.([]any)
	return items
}

// actionOf reads back the Action that a request's URL stands for.
func actionOf(req *http.Request) (action.Action, error) {
	var a action.Action
	segments := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	switch {
	case len(segments) >= 3 && segments[0] == "api":
		a.Resource.Version, segments = segments[1], segments[2:]
	case len(segments) >= 4 && segments[0] == "apis":
		a.Resource.Group, a.Resource.Version, segments = segments[1], segments[2], segments[3:]
	default:
		return a, fmt.Errorf("a request for %s has no form that can be decided", req.URL.Path)
	}
	if len(segments) > 2 && segments[0] == "namespaces" {
		a.Namespace, a.Resource.Namespaced, segments = segments[1], true, segments[2:]
	}
	a.Resource.Resource = segments[0]
	if len(segments) > 1 {
		a.Name = segments[1]
	}
	if len(segments) > 2 {
		a.Subresource = strings.Join(segments[2:], "/")
	}
	query := req.URL.Query()
	switch {
	case req.Method == http.MethodGet && !query.Has("watch"):
		if a.Verb = action.List; a.Name != "" {
			a.Verb = action.Get
		}
	case req.Method == http.MethodPatch && req.Body != nil:
		data, err := io.ReadAll(req.Body)
		if err != nil {
			return a, err
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &a.Body); err != nil {
			return a, err
		}
		a.Verb = action.Patch
		a.Options = action.Options{PatchType: action.PatchType(req.Header.Get("Content-Type")), FieldManager: tools.FieldManager}
	default:
		return a, fmt.Errorf("kubectl's code would %s %s", req.Method, req.URL.Path)
	}
	if a.Verb == action.List {
		// Whole lists: the code that reads them goes on page by page, and each
		// page would be a request of its own.
		a.Options = action.Options{LabelSelector: query.Get("labelSelector"), FieldSelector: query.Get("fieldSelector")}
	}
	return a, nil
}

// wrong puts what kubectl's code says into words for the agent.
func (k *kubectl) wrong(err error) error { return k.wrongIn(err, tools.MaxForeign) }

func (k *kubectl) wrongIn(err error, most int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case k.failed != nil && strings.Contains(err.Error(), words(k.failed)):
		return k.failed // an earlier failure may be one that this code could do without
	}
	return tools.Foreign(err, most)
}

// words are what kubectl's code was told of a failed request.
func words(err error) string {
	var refused *gate.APIError
	if errors.As(err, &refused) {
		return refused.Message
	}
	return err.Error()
}

func groupKind(r action.Resource) schema.GroupKind {
	return schema.GroupKind{Group: r.Group, Kind: r.Kind}
}

// Describe implements tools.Kubectl.
func (k *kubectl) Describe(r action.Resource, namespace, name string) (string, error) {
	k.masked = true
	describer, ok := describe.DescriberFor(groupKind(r), k.config())
	if !ok {
		scope := meta.RESTScopeRoot
		if r.Namespaced {
			scope = meta.RESTScopeNamespace
		}
		describer, ok = describe.GenericDescriberFor(&meta.RESTMapping{
			Resource:         schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Resource},
			GroupVersionKind: schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}, Scope: scope,
		}, k.config())
	}
	if !ok {
		return "", tools.BadArgument("%s cannot be described: use get_resource", r.Kind)
	}
	text, err := describer.Describe(namespace, name, describe.DescriberSettings{ShowEvents: true})
	return text, k.wrong(err)
}

// RolloutStatus implements tools.Kubectl.
func (k *kubectl) RolloutStatus(a action.Action, object map[string]any) (string, bool, error) {
	viewer, err := polymorphichelpers.StatusViewerFor(groupKind(a.Resource))
	if err != nil {
		return "", false, tools.Foreign(err, tools.MaxForeign)
	}
	text, done, err := viewer.Status(&unstructured.Unstructured{Object: object}, 0)
	return strings.TrimSpace(text), done, k.wrong(err)
}

// RolloutHistory implements tools.Kubectl.
func (k *kubectl) RolloutHistory(a action.Action, revision int64) (string, error) {
	k.masked = true
	client, err := k.client()
	if err != nil {
		return "", err
	}
	viewer, err := polymorphichelpers.HistoryViewerFor(groupKind(a.Resource), client)
	if err != nil {
		return "", tools.Foreign(err, tools.MaxForeign)
	}
	text, err := viewer.ViewHistory(a.Namespace, a.Name, revision)
	return text, k.wrong(err)
}

// Undo implements tools.Kubectl.
func (k *kubectl) Undo(a action.Action, object map[string]any, revision int64) (action.Action, error) {
	client, err := k.client()
	if err != nil {
		return action.Action{}, err
	}
	rollbacker, err := polymorphichelpers.RollbackerFor(groupKind(a.Resource), client)
	if err != nil {
		return action.Action{}, tools.Foreign(err, tools.MaxForeign)
	}
	text, err := rollbacker.Rollback(&unstructured.Unstructured{Object: object}, nil, revision, util.DryRunNone)
	if err := k.wrong(err); err != nil {
		return action.Action{}, err
	}
	if k.patch == nil {
		return action.Action{}, tools.Foreign(fmt.Errorf("nothing to undo: %s", text), tools.MaxForeign)
	}
	k.patch.Resource = a.Resource
	return *k.patch, nil
}

// maxPodNames bounds what is said about pods, in bytes: the tool cuts it at a name.
const maxPodNames = 8 << 10

// Evictable implements tools.Kubectl.
func (k *kubectl) Evictable(node string, options tools.DrainOptions) ([]tools.PodRef, error) {
	client, err := k.client()
	if err != nil {
		return nil, err
	}
	helper := drain.Helper{
		Ctx: k.ctx, Client: client, Force: options.Force, GracePeriodSeconds: -1, IgnoreAllDaemonSets: options.IgnoreDaemonSets,
		DeleteEmptyDirData: options.DeleteEmptyDirData, PodSelector: options.PodSelector, Out: io.Discard, ErrOut: io.Discard,
	}
	found, errs := helper.GetPodsForDeletion(node)
	// Each of them is a list of pods.
	if err := k.wrongIn(errors.Join(errs...), maxPodNames); err != nil {
		return nil, err
	}
	var pods []tools.PodRef
	for _, pod := range found.Pods() {
		pods = append(pods, tools.PodRef{Namespace: pod.Namespace, Name: pod.Name})
	}
	return pods, nil
}

// Explain implements tools.Kubectl. It asks for the cluster's OpenAPI documents
// as discovery does: they are the server's knowledge and not anybody's objects.
func (k *kubectl) Explain(r action.Resource, fields []string, recursive bool) (string, error) {
	var out bytes.Buffer
	err := explain.PrintModelDescription(fields, &out, k.one.discovery.OpenAPIV3(),
		schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Resource}, recursive, 0, "plaintext")
	if err != nil {
		words := strings.TrimPrefix(err.Error(), "error: ")
		return "", tools.Foreign(errors.New(words), tools.MaxForeign)
	}
	return out.String(), nil
}

// Served implements gate.Cluster.
func (c *Clusters) Served(ctx context.Context, clusterName string) (tools.Served, error) {
	one, err := c.get(clusterName)
	if err != nil {
		return tools.Served{}, err
	}
	type answer struct {
		served tools.Served
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		served, err := one.served()
		done <- answer{served, err}
	}()
	select {
	case a := <-done:
		return a.served, apiError(a.err)
	case <-ctx.Done():
		return tools.Served{}, ctx.Err()
	}
}

func (c *cluster) served() (tools.Served, error) {
	version, err := c.discovery.ServerVersion()
	if err != nil {
		return tools.Served{}, err
	}
	served := tools.Served{Version: version.GitVersion}
	lists, err := c.discovery.ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		return tools.Served{}, err
	}
	for _, list := range lists { // a group that is down leaves the others
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") {
				continue
			}
			served.Kinds = append(served.Kinds, tools.Kind{
				Resource:   action.Resource{Group: gv.Group, Version: gv.Version, Resource: r.Name, Kind: r.Kind, Namespaced: r.Namespaced},
				ShortNames: r.ShortNames,
			})
		}
	}
	slices.SortFunc(served.Kinds, func(a, b tools.Kind) int {
		return strings.Compare(a.Group+"/"+a.Resource.Resource, b.Group+"/"+b.Resource.Resource)
	})
	return served, nil
}
