// What MathJax reads: equations of pages (arithmatex) and of notebooks, and nothing else on a page.
window.MathJax = {
  tex: { inlineMath: [["$", "$"], ["\\(", "\\)"]] },
  startup: { elements: [".arithmatex", ".jp-RenderedMarkdown"] },
  options: { enableMenu: false },
};
