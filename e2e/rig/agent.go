package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Agent is an MCP client over streamable HTTP, revision 2025-06-18. It writes
// the bytes of its messages itself, so that a test can send what no library would.
type Agent struct {
	URL   string
	Token string
	// Client sends its messages; nil is http.DefaultClient.
	Client *http.Client
	// Session is the session id that the server gave; Connect sets it.
	Session string
	nextID  int
}

// protocolVersion is the revision that Agent speaks.
const protocolVersion = "2025-06-18"

// Answer is what a tool call gave.
type Answer struct {
	// Text is what a model reads.
	Text string
	// Structured is the small result of everything but a successful read.
	Structured struct {
		Status  string `json:"status"`
		Op      string `json:"op"`
		Summary string `json:"summary"`
		Rule    string `json:"rule"`
		Reason  string `json:"reason"`
	}
	IsError bool
}

// Connect initializes a session.
func (a *Agent) Connect(ctx context.Context) error {
	params := map[string]any{
		"protocolVersion": protocolVersion, "capabilities": map[string]any{},
		"clientInfo": map[string]any{"name": "rig", "version": "1"},
	}
	if _, err := a.Request(ctx, "initialize", params); err != nil {
		return err
	}
	_, _, err := a.Post(ctx, []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`))
	return err
}

// Tools lists the names of the tools that the server shows.
func (a *Agent) Tools(ctx context.Context) ([]string, error) {
	result, err := a.Request(ctx, "tools/list", map[string]any{})
	if err != nil {
		return nil, err
	}
	var list struct {
		Tools []struct {
			Name string `json:"name"`
		} `json:"tools"`
	}
	if err := json.Unmarshal(result, &list); err != nil {
		return nil, err
	}
	names := make([]string, len(list.Tools))
	for i, t := range list.Tools {
		names[i] = t.Name
	}
	return names, nil
}

// Call calls a tool; arguments is JSON, sent as it stands.
func (a *Agent) Call(ctx context.Context, tool, arguments string) (Answer, error) {
	result, err := a.Request(ctx, "tools/call", json.RawMessage(fmt.Sprintf(`{"name":%q,"arguments":%s}`, tool, arguments)))
	if err != nil {
		return Answer{}, err
	}
	var raw struct {
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
		Structured json.RawMessage `json:"structuredContent"`
		IsError    bool            `json:"isError"`
	}
	if err := json.Unmarshal(result, &raw); err != nil {
		return Answer{}, err
	}
	answer := Answer{IsError: raw.IsError}
	for _, c := range raw.Content {
		answer.Text += c.Text
	}
	if raw.Structured != nil {
		err = json.Unmarshal(raw.Structured, &answer.Structured)
	}
	return answer, err
}

// RPCError is a JSON-RPC error.
type RPCError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *RPCError) Error() string { return fmt.Sprintf("JSON-RPC error %d: %s", e.Code, e.Message) }

// Request sends one JSON-RPC request and returns its result.
func (a *Agent) Request(ctx context.Context, method string, params any) (json.RawMessage, error) {
	a.nextID++
	body, err := encode(map[string]any{"jsonrpc": "2.0", "id": a.nextID, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	status, answer, err := a.Post(ctx, body)
	if err != nil {
		return nil, err
	}
	var message struct {
		Result json.RawMessage `json:"result"`
		Error  *RPCError       `json:"error"`
	}
	if err := json.Unmarshal(answer, &message); err != nil {
		return nil, fmt.Errorf("HTTP %d: %s", status, strings.TrimSpace(string(answer)))
	}
	if message.Error != nil {
		return nil, message.Error
	}
	return message.Result, nil
}

// encode keeps a json.RawMessage byte for byte, which json.Marshal would tidy up.
func encode(message map[string]any) ([]byte, error) {
	raw, ok := message["params"].(json.RawMessage)
	if !ok {
		return json.Marshal(message)
	}
	message["params"] = "PARAMS"
	data, err := json.Marshal(message)
	return bytes.Replace(data, []byte(`"PARAMS"`), raw, 1), err
}

// Post sends the bytes of a message and returns the status and the message of
// the answer, taken out of an event stream where it came as one.
func (a *Agent) Post(ctx context.Context, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.URL, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Protocol-Version", protocolVersion)
	if a.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	if a.Session != "" {
		req.Header.Set("Mcp-Session-Id", a.Session)
	}
	client := a.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if id := resp.Header.Get("Mcp-Session-Id"); id != "" {
		a.Session = id
	}
	answer, err := io.ReadAll(resp.Body)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		if answer, err = lastEvent(answer); err != nil {
			return resp.StatusCode, nil, err
		}
	}
	return resp.StatusCode, answer, err
}

// lastEvent is the answer in an event stream; progress comes before it.
func lastEvent(stream []byte) ([]byte, error) {
	var last []byte
	for line := range bytes.Lines(stream) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			last = bytes.TrimSpace(data)
		}
	}
	if last == nil {
		return nil, errors.New("the event stream held no message")
	}
	return last, nil
}
