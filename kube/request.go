package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/gate"
)

// headerAuditID is the header that the API server takes its own audit id from
// (k8s.io/apiserver/pkg/apis/audit).
const headerAuditID = "Audit-ID"

// tableAccept asks for a server-side table and nothing else (Kubernetes API
// Concepts, "Receiving resources as Tables").
const tableAccept = "application/json;as=Table;v=v1;g=meta.k8s.io"

// Execute implements gate.Cluster.
func (c *Clusters) Execute(ctx context.Context, as *action.Principal, a action.Action, auditID string, live gate.Live) (gate.Response, error) {
	one, err := c.get(a.Cluster)
	if err != nil {
		return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	if ctx, err = one.as(ctx, as); err != nil {
		return gate.Response{}, err
	}
	if a.Subresource == action.Exec {
		return one.exec(ctx, a, auditID, live)
	}
	response, err := one.send(ctx, a, auditID, live, false)
	if err != nil || a.ReadOnly() {
		return response, err
	}
	var object struct {
		Metadata struct {
			Name            string `json:"name"`
			UID             string `json:"uid"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Details struct {
			UID string `json:"uid"`
		} `json:"details"` // of the Status that a deletion may answer with
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &object); err == nil {
		response.Name, response.UID, response.ResourceVersion = object.Metadata.Name, object.Metadata.UID, object.Metadata.ResourceVersion
		if response.UID == "" {
			response.UID = object.Details.UID
		}
	}
	return response, nil
}

// Preview implements gate.Cluster: the live object first, then the same
// request as a dry run. A creation has no live object: where one of its name is
// there, the API server refuses the dry run.
func (c *Clusters) Preview(ctx context.Context, as *action.Principal, a action.Action, auditID func() string) (action.Preview, error) {
	one, err := c.get(a.Cluster)
	if err != nil {
		return action.Preview{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	if ctx, err = one.as(ctx, as); err != nil {
		return action.Preview{}, err
	}
	var live map[string]any
	if a.Verb != action.Create || a.Subresource != "" {
		get := action.Action{Cluster: a.Cluster, Verb: action.Get, Resource: a.Resource, Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name}
		if a.Verb == action.Create { // upon the object, which has no such part
			get.Subresource = ""
		}
		live, err = one.object(ctx, get, auditID(), false)
		if notFound(err) && a.Options.PatchType == action.ApplyPatch {
			live, err = nil, nil // an apply creates what is missing
		}
		if err != nil {
			return action.Preview{}, err
		}
	}
	if a.Subresource == action.Exec { // there is no trying a command
		return action.Preview{Live: live, Result: live, Diff: []action.Change{{Op: "add", Path: "/exec", New: map[string]any{
			"command": anyList(a.Options.Command), "container": a.Options.Container,
		}}}}, nil
	}
	result, err := one.object(ctx, a, auditID(), true)
	if err != nil {
		return action.Preview{}, err
	}
	if a.Removes() {
		result = nil // what came back is the object that would go, or a Status
	}
	return action.NewPreview(live, result), nil
}

// Namespace implements gate.Cluster.
func (c *Clusters) Namespace(ctx context.Context, as *action.Principal, clusterName, name, auditID string) (map[string]any, error) {
	one, err := c.get(clusterName)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	if name == "" { // it would be a list of all of them
		return nil, fmt.Errorf("%w: no namespace is named", gate.ErrNotSent)
	}
	if ctx, err = one.as(ctx, as); err != nil {
		return nil, err
	}
	namespace, err := one.object(ctx, action.Action{
		Cluster: clusterName, Verb: action.Get, Resource: action.Resource{Version: "v1", Resource: "namespaces", Kind: "Namespace"}, Name: name,
	}, auditID, false)
	if notFound(err) {
		return nil, nil
	}
	return namespace, err
}

func notFound(err error) bool {
	var refused *gate.APIError
	return errors.As(err, &refused) && refused.Code == http.StatusNotFound
}

// object sends a request and decodes the object that it answers with.
func (c *cluster) object(ctx context.Context, a action.Action, auditID string, dryRun bool) (map[string]any, error) {
	response, err := c.send(ctx, a, auditID, gate.Live{}, dryRun)
	if err != nil {
		return nil, err
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &object); err != nil {
		return nil, fmt.Errorf("reading the API server's answer to %s: %w", a, err)
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields") // large, and nobody decides on it
	}
	if spec, ok := object["spec"].(map[string]any); ok && a.Subresource == "scale" && spec["replicas"] == nil {
		// A Scale leaves a zero out (autoscaling/v1, omitempty). Written out, rules
		// and people see that it is 0.
		spec["replicas"] = int64(0)
	}
	return object, nil
}

// send sends one request. A body is sent for every verb that has one, and a
// dry run differs from the real request in nothing but dryRun=All.
func (c *cluster) send(ctx context.Context, a action.Action, auditID string, live gate.Live, dryRun bool) (gate.Response, error) {
	var req *rest.Request
	switch a.Verb {
	case action.Get, action.List:
		req = c.reads.Get()
	case action.Create:
		req = c.client.Post()
	case action.Patch:
		req = c.client.Patch(types.PatchType(a.Options.PatchType))
	case action.Delete:
		req = c.client.Delete()
	default:
		return gate.Response{}, fmt.Errorf("%w: this server cannot send the verb %q", gate.ErrNotSent, a.Verb)
	}
	req = req.AbsPath(path(a)...).SetHeader(headerAuditID, auditID)
	switch {
	case a.Verb == action.Delete:
		options := metav1.DeleteOptions{GracePeriodSeconds: a.Options.GracePeriodSeconds}
		options.APIVersion, options.Kind = "v1", "DeleteOptions"
		if p := metav1.DeletionPropagation(a.Options.PropagationPolicy); p != "" {
			options.PropagationPolicy = &p
		}
		if live.UID != "" {
			options.Preconditions = metav1.NewUIDPreconditions(live.UID)
			options.Preconditions.ResourceVersion = &live.ResourceVersion
		}
		if dryRun {
			options.DryRun = []string{metav1.DryRunAll}
		}
		body, err := action.Canonical(options)
		if err != nil {
			return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
		}
		req = req.SetHeader("Content-Type", "application/json").Body(body)
	case dryRun && a.Body == nil:
		return gate.Response{}, fmt.Errorf("%w: a dry run of a request without a body would be the request itself", gate.ErrNotSent)
	case a.Body != nil:
		body, err := action.Canonical(unchanged(a, live))
		if err != nil {
			return gate.Response{}, fmt.Errorf("%w: %w", gate.ErrNotSent, err)
		}
		if a.Verb == action.Create { // a patch has said what its body is
			req = req.SetHeader("Content-Type", "application/json")
		}
		req = req.Body(body).Param("fieldValidation", metav1.FieldValidationStrict)
		if dryRun {
			req = req.Param("dryRun", metav1.DryRunAll)
		}
	}
	if !a.ReadOnly() {
		req = req.MaxRetries(0) // whether to send a change again is not for a library to decide
	}
	req = parameters(req, a)
	if a.Options.TailBytes > 0 {
		response, err := stream(ctx, req, a.Options.TailBytes)
		return response, c.gone(a, err)
	}
	result := req.Do(ctx)
	var response gate.Response
	result.StatusCode(&response.Code)
	if err := result.Error(); err != nil {
		return response, c.gone(a, withHint(a, withoutValues(a, withoutObject(a, fault(ctx, err)))))
	}
	response.Body, _ = result.Raw()
	return response, nil
}

// unchanged is the body of a request that is to be refused, with code 409, unless
// the object is still in the state that was seen.
func unchanged(a action.Action, live gate.Live) any {
	if live.ResourceVersion == "" || a.Verb != action.Patch && a.Subresource != action.Eviction {
		return a.Body
	}
	switch body := a.Body.(type) {
	case []any: // JSON Patch
		// Last, so that no other operation takes it away; "add" also replaces.
		return append(slices.Clone(body), map[string]any{"op": "add", "path": "/metadata/resourceVersion", "value": live.ResourceVersion})
	case map[string]any:
		body = maps.Clone(body)
		if a.Subresource == action.Eviction {
			// Which pod, and not in which state: its status changes all the time.
			options, _ := body["deleteOptions"].(map[string]any)
			if options = maps.Clone(options); options == nil {
				options = map[string]any{}
			}
			options["preconditions"] = map[string]any{"uid": live.UID}
			body["deleteOptions"] = options
			return body
		}
		meta, _ := body["metadata"].(map[string]any)
		meta = maps.Clone(meta)
		if meta == nil {
			meta = map[string]any{}
		}
		meta["resourceVersion"] = live.ResourceVersion
		body["metadata"] = meta
		return body
	}
	return a.Body
}

// stream reads an answer to its end and keeps the last bytes of it: what is
// asked for is the newest of a log, and a limit at the API server keeps the oldest.
func stream(ctx context.Context, req *rest.Request, keep int64) (gate.Response, error) {
	body, err := req.Stream(ctx)
	if err != nil {
		return gate.Response{}, fault(ctx, err)
	}
	defer body.Close()
	response := gate.Response{Code: http.StatusOK}
	chunk := make([]byte, 32<<10)
	for {
		n, err := body.Read(chunk)
		response.Body = append(response.Body, chunk[:n]...)
		end := errors.Is(err, io.EOF)
		if over := int64(len(response.Body)) - keep; over > keep || end && over > 0 { // moved seldom: keep can be large
			response.Omitted += over
			response.Body = append(response.Body[:0], response.Body[over:]...)
		}
		if end {
			return response, nil
		}
		if err != nil {
			return gate.Response{}, apiError(err)
		}
	}
}

// path is the request's URL path. Every segment has been checked to be one.
func path(a action.Action) []string {
	segments := []string{"/apis", a.Resource.Group, a.Resource.Version}
	if a.Resource.Group == "" {
		segments = []string{"/api", a.Resource.Version}
	}
	if a.Namespace != "" {
		segments = append(segments, "namespaces", a.Namespace)
	}
	segments = append(segments, a.Resource.Resource)
	if a.Name != "" && (a.Verb != action.Create || a.Subresource != "") { // a new object's name stands in it
		segments = append(segments, a.Name)
	}
	if a.Subresource != "" {
		segments = append(segments, a.Subresource)
	}
	return segments
}

func parameters(req *rest.Request, a action.Action) *rest.Request {
	o := a.Options
	text := map[string]string{
		"fieldManager": o.FieldManager, "labelSelector": o.LabelSelector, "fieldSelector": o.FieldSelector,
		"continue": o.Continue, "container": o.Container,
	}
	for name, value := range text {
		if value != "" {
			req = req.Param(name, value)
		}
	}
	numbers := map[string]int64{"limit": o.Limit, "tailLines": o.TailLines, "sinceSeconds": o.SinceSeconds}
	for name, value := range numbers {
		if value != 0 {
			req = req.Param(name, strconv.FormatInt(value, 10))
		}
	}
	if o.Force {
		req = req.Param("force", "true")
	}
	if o.Previous {
		req = req.Param("previous", "true")
	}
	if o.Timestamps {
		req = req.Param("timestamps", "true")
	}
	if o.Table {
		include := metav1.IncludeNone
		if a.Resource.Namespaced && a.Namespace == "" {
			include = metav1.IncludeMetadata // the rows have to say which namespace they are of
		}
		req = req.SetHeader("Accept", tableAccept).Param("includeObject", string(include))
	}
	return req
}

// gone says of a kind that is served no more what it is, and makes the next call
// ask the cluster anew. That an object is missing is another 404.
func (c *cluster) gone(a action.Action, err error) error {
	var refused *gate.APIError
	if !errors.As(err, &refused) || refused.Code != http.StatusNotFound || !strings.Contains(refused.Message, "could not find the requested resource") {
		return err
	}
	if c.mayRefresh(&c.dropped) {
		c.forget()
	}
	what := a.Resource.GroupResource()
	if a.Subresource != "" {
		what += "/" + a.Subresource
	}
	return &gate.APIError{Code: refused.Code, Reason: refused.Reason, Message: fmt.Sprintf(
		"cluster %s does not serve %s in version %s any more; list_api_resources lists the kinds that it serves now", c.name, what, a.Resource.Version)}
}

// withHint adds what to do about a refusal whose words do not say it.
func withHint(a action.Action, err error) error {
	var refused *gate.APIError
	if a.Options.PatchType == action.StrategicMergePatch && errors.As(err, &refused) && refused.Code == http.StatusUnsupportedMediaType {
		hinted := *refused
		hinted.Message += ": only built-in kinds take a strategic merge patch; use type merge"
		return &hinted
	}
	return err
}

// withoutObject leaves out the object that the API server quotes whole where a
// patch does not make a valid one of it: whoever may patch an object need not be
// one who may read it, and nothing is masked within a quotation.
func withoutObject(a action.Action, err error) error {
	const quotes = "patch: Invalid value: "
	var refused *gate.APIError
	if a.Verb != action.Patch || !errors.As(err, &refused) {
		return err
	}
	before, quoted, found := strings.Cut(refused.Message, quotes)
	if !found {
		return err
	}
	object, _ := strconv.QuotedPrefix(quoted)
	why := strings.TrimPrefix(quoted[len(object):], ": ")
	if object == "" {
		why = "(left out)" // quoted in a way of its own
	}
	return &gate.APIError{Code: refused.Code, Reason: refused.Reason, Message: strings.TrimSpace(before + quotes + why)}
}

// withoutValues leaves out the API server's words where they can repeat the
// value of a Secret: it quotes what does not fit.
func withoutValues(a action.Action, err error) error {
	var refused *gate.APIError
	if a.Resource.GroupResource() != "secrets" || a.ReadOnly() || !errors.As(err, &refused) {
		return err
	}
	switch metav1.StatusReason(refused.Reason) {
	case metav1.StatusReasonNotFound, metav1.StatusReasonForbidden, metav1.StatusReasonConflict, metav1.StatusReasonAlreadyExists:
		return err
	}
	text := fmt.Sprintf("%s (code %d); its words are left out, because they can repeat a secret value", refused.Reason, refused.Code)
	if field := notDeclared.FindString(refused.Message); field != "" {
		text += ": " + field
	}
	return &gate.APIError{Code: refused.Code, Reason: refused.Reason, Message: text}
}

// notDeclared is the most frequent mistake, and names only a field: the words
// for an apply, and those for a creation or another patch.
var notDeclared = regexp.MustCompile(`\.[A-Za-z0-9.]{1,100}: field not declared in schema|unknown field "[A-Za-z0-9.]{1,100}"`)

// apiError tells gate what kind of failure it was: the API server's own refusal,
// a request that never left, or one of which nothing is known.
func apiError(err error) error {
	if err == nil {
		return nil
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		s := status.Status()
		message := s.Message
		if d := s.Details; d != nil && s.Reason == metav1.StatusReasonTooManyRequests {
			for _, cause := range d.Causes[:min(len(d.Causes), 3)] { // which disruption budget, and its numbers
				message += " " + cause.Message
			}
		}
		return &gate.APIError{Code: int(s.Code), Reason: string(s.Reason), Message: message}
	}
	var operation *net.OpError
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &operation) && operation.Op == "dial" || errors.As(err, &certificate) {
		return fmt.Errorf("%w: %w", gate.ErrNotSent, err)
	}
	return err
}
