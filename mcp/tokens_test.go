package mcp

import (
	"encoding/json"
	"testing"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/tiktoken-go/tokenizer"

	"countersign/tools"
)

// maxTokens is what the list of all tools may take of a model's context.
const maxTokens = 8000

// An agent pays for the list of tools with its context before it has done
// anything: for a caller with full rights, and with a choice of clusters.
func TestToolsFitAContext(t *testing.T) {
	codec, err := tokenizer.Get(tokenizer.O200kBase)
	if err != nil {
		t.Fatal(err)
	}
	var result mcpgo.ListToolsResult
	for _, tool := range tools.All([]string{"production", "staging"}) {
		result.Tools = append(result.Tools, describeTool(tool))
	}
	data, err := json.Marshal(result)
	if err != nil {
		t.Fatal(err)
	}
	n, err := codec.Count(string(data))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d tools are %d bytes and %d tokens (o200k)", len(result.Tools), len(data), n)
	if n > maxTokens {
		for _, tool := range result.Tools {
			data, _ := json.Marshal(tool)
			n, _ := codec.Count(string(data))
			t.Logf("%5d %s", n, tool.Name)
		}
		t.Errorf("the list of tools is %d tokens; %d is the most", n, maxTokens)
	}
}
