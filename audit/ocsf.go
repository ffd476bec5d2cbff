package audit

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"countersign/action"
)

// OCSF gives a record, as it is stored, as an event of the Open Cybersecurity Schema
// Framework 1.8, class API Activity. What the class has no place for is in unmapped.
// The event is derived: what can be checked is the record, to whose hash as a leaf
// of the tree raw_data_hash points.
func OCSF(leaf []byte) ([]byte, error) {
	var r Record
	var rest map[string]json.RawMessage
	if err := json.Unmarshal(leaf, &r); err != nil {
		return nil, fmt.Errorf("reading a record: %w", err)
	}
	if err := json.Unmarshal(leaf, &rest); err != nil {
		return nil, fmt.Errorf("reading a record: %w", err)
	}
	for _, mapped := range []string{"seq", "id", "time", "op", "session", "duration_ms", "principal"} {
		delete(rest, mapped)
	}
	activity, name := r.activity()
	status := ocsfStatus[r.Outcome]
	hash := tlog.RecordHash(leaf)
	event := map[string]any{
		"category_uid": 6, "category_name": "Application Activity",
		"class_uid": 6003, "class_name": "API Activity",
		"activity_id": activity, "activity_name": name,
		"type_uid": 600300 + activity, "type_name": "API Activity: " + name,
		"severity_id": status.severity, "severity": []string{"Unknown", "Informational", "Low", "Medium"}[status.severity],
		"status_id": status.id, "status": []string{"Unknown", "Success", "Failure"}[status.id],
		"time":    r.Time.UnixMilli(),
		"message": r.summary(),
		"metadata": drop(map[string]any{
			"version": "1.8.0", "product": map[string]any{"name": "Countersign", "vendor_name": "Countersign"},
			"uid": r.ID, "sequence": r.Seq, "correlation_uid": r.Op, "event_code": r.Type, "log_name": "audit", "log_provider": r.Node,
		}),
		"actor":         r.actor(rest),
		"api":           r.api(),
		"src_endpoint":  r.endpoint(),
		"raw_data_hash": map[string]any{"algorithm_id": 99, "algorithm": "SHA-256 of a zero byte and the record (RFC 6962)", "value": hex.EncodeToString(hash[:])},
		"unmapped":      rest,
	}
	if r.Outcome != "" {
		event["status_detail"] = r.Outcome
	}
	if r.DurationMS > 0 {
		event["duration"] = r.DurationMS
	}
	var resources []any
	for _, a := range r.Actions {
		resources = append(resources, drop(map[string]any{"name": a.Name, "namespace": a.Namespace, "type": a.Resource, "uid": a.UID}))
	}
	if resources != nil {
		event["resources"] = resources
	}
	return json.Marshal(event)
}

// ocsfStatus are status_id and severity_id for each outcome. One that is not among
// them is unknown in both.
var ocsfStatus = map[string]struct{ id, severity int }{
	"": {0, 1}, Pending: {0, 1}, Success: {1, 1}, Failure: {2, 2}, Denied: {2, 2}, Unknown: {0, 3},
}

// activity is what kind of request the record tells of, if that is one kind.
func (r *Record) activity() (id int, name string) {
	kinds := map[string]int{action.Create: 1, action.Get: 2, action.List: 2, "watch": 2, action.Update: 3, action.Patch: 3, action.Delete: 4, "deletecollection": 4}
	names := []string{"", "Create", "Read", "Update", "Delete"}
	for i, a := range r.Actions {
		kind := kinds[a.Verb]
		if kind == 1 && a.Subresource != "" { // such as a command in a pod, or an eviction
			kind = 0
		}
		if kind == 0 || i > 0 && kind != id {
			return 99, "Other"
		}
		id = kind
	}
	if id == 0 {
		return 99, "Other"
	}
	return id, names[id]
}

func (r *Record) summary() string {
	words := []string{r.Type}
	if r.Tool != nil {
		words = append(words, r.Tool.Name)
	}
	for i, a := range r.Actions {
		if i == 3 {
			words = append(words, fmt.Sprintf("and %d more", len(r.Actions)-3+r.MoreActions))
			break
		}
		words = append(words, a.String())
	}
	if r.Outcome != "" {
		words = append(words, r.Outcome)
	}
	return strings.Join(words, " ")
}

// actor is who asked; what has no place there stays in rest.
func (r *Record) actor(rest map[string]json.RawMessage) map[string]any {
	p := r.Principal
	if p == nil && r.Source != nil { // who it was could not be found out
		return map[string]any{"user": map[string]any{"name": "unknown"}}
	}
	if p == nil {
		return map[string]any{"app_name": "countersign"}
	}
	if p.OnBehalfOf != "" {
		rest["on_behalf_of"], _ = json.Marshal(p.OnBehalfOf)
	}
	user := drop(map[string]any{"name": p.Username, "uid": p.Subject})
	if len(p.Groups) > 0 {
		groups := make([]any, len(p.Groups))
		for i, g := range p.Groups {
			groups[i] = map[string]any{"name": g}
		}
		user["groups"] = groups
	}
	actor := drop(map[string]any{"user": user, "app_uid": p.Client})
	if p.Issuer != "" {
		actor["idp"] = map[string]any{"name": p.Issuer}
	}
	if r.Session != "" {
		actor["session"] = drop(map[string]any{"uid": r.Session, "issuer": p.Issuer})
	}
	return actor
}

// api is the first request; all of them are in unmapped.
func (r *Record) api() map[string]any {
	api := map[string]any{"operation": r.Type}
	if r.Tool != nil {
		api["operation"] = r.Tool.Name
	}
	if len(r.Actions) == 0 {
		return api
	}
	a := r.Actions[0]
	api["operation"] = a.Verb
	if a.Subresource != "" {
		api["operation"] = a.Verb + " " + a.Subresource
	}
	api["service"] = map[string]any{"name": a.Cluster}
	if a.AuditID != "" {
		api["request"] = map[string]any{"uid": a.AuditID}
	}
	if a.Code != 0 {
		response := map[string]any{"code": a.Code}
		if r.Error != nil {
			response["error"], response["error_message"] = r.Error.Type, r.Error.Message
		}
		api["response"] = response
	}
	return api
}

// endpoint is where a call came from. Only the record that begins a call or a
// session has the address; the others have the session.
func (r *Record) endpoint() map[string]any {
	switch {
	case r.Source != nil:
		if e := drop(map[string]any{"ip": r.Source.IP, "uid": r.Session}); len(e) > 0 {
			return e
		}
		return map[string]any{"name": r.Source.Transport}
	case r.Session != "":
		return map[string]any{"uid": r.Session}
	}
	return map[string]any{"name": cmp.Or(r.Node, "countersign")}
}

// drop takes out texts that are empty.
func drop(m map[string]any) map[string]any {
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	return m
}
